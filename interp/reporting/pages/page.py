"""What the page of a report is made from: plain values in the shape that `interp.explorer.page` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.records import Method, labelled, numbers_of
from interp.reporting.sections import sections
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Label

UNKNOWN = "as its method defines it"


def payload(made: Gathered, files: list[str]) -> dict[str, Any]:
    """The payload; `files` are next to the page."""
    about = made.about
    facts = [("model", made.model), ("task", made.task or "none"), ("heads", str(made.rows["site"].nunique()))]
    facts += [(name, str(about[name])) for name in ("dtype", "attention", "seed") if about.get(name) is not None]
    shown: dict[str, Any] = {
        "title": made.title, "finding": made.finding, "facts": facts, "warnings": made.warnings, "towers": made.towers,
        "scores": shown_rows(made), "methods": methods(made), "cards": {}, "curves": [], "tables": [], "checks": [],
        "links": [(name, name) for name in files], "provenance": {"report": dict(about)},
    }  # fmt: skip
    for part in (*(section.page(made) for section in sections()), {"cards": _ranks(made), "tables": _first(made)}):
        _put(shown, part)
    return shown


def _put(shown: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Lists one after the other, cards head by head, the rest as it is."""
    for key, value in part.items():
        if isinstance(value, list) and key in shown:
            shown[key] = [*shown[key], *value]
        elif key == "cards":
            for site, one in value.items():
                shown["cards"][site] = {**shown["cards"].get(site, {}), **one}
        else:
            shown[key] = value


def described(label: str) -> Label | None:
    """What numbers of this name are: a method's record says it, or the section they are of."""
    record = labelled(label)
    if record is not None:
        drawn = not isinstance(record, Method) or record.shown == "map"
        return Label(record.number, record.signed, tuple(numbers_of(record)), drawn)
    return next((one for s in sections() for start, one in s.labels.items() if label.startswith(start)), None)


def name_of(method: str, direction: str) -> str:
    """A method as the menu has it; exact patching has two directions."""
    return f"{method} ({direction})" if method == "patch" and direction in ("denoise", "noise") else method


def shown_rows(made: Gathered) -> Any:
    """The table with one name per method and direction."""
    rows = made.rows
    names = [name_of(m, d) for m, d in zip(rows["method"], rows["direction"], strict=True)]
    return rows.assign(method=names)


def methods(made: Gathered) -> dict[str, dict[str, Any]]:
    """How each method is drawn, what heads are ranked by first."""
    rows, first = shown_rows(made), made.ranked
    order = dict.fromkeys(rows["method"])
    if len(first):
        best = name_of(first["method"].iloc[0], first["direction"].iloc[0])
        order = dict.fromkeys([best, *order])
    found = {}
    for name in order:
        mine = rows[rows["method"] == name]
        said = described(name.partition(" (")[0])
        below = bool((mine["estimate"] < 0).any() or mine["direction"].iloc[0] != "none")
        signed = below and (said is None or said.signed)
        floor = mine["noise_floor"].max()
        found[name] = {
            "kind": "signed" if signed else "sequential", "unit": str(mine["metric"].iloc[0]),
            "about": UNKNOWN if said is None else said.about, **({"floor": float(floor)} if floor == floor else {}),
        }  # fmt: skip
    return found


def _ranks(made: Gathered) -> dict[str, dict[str, Any]]:
    """What is said about the heads that matter: rank, effect, interval."""
    ranked = made.ranked.set_index("site") if len(made.rows) else None
    found: dict[str, dict[str, Any]] = {}
    for site in made.leaders:
        one: dict[str, Any] = {}
        found[site] = one
        if ranked is not None and site in ranked.index:
            row = ranked.loc[site]
            one["facts"] = [("rank", str(int(row["rank"]))), ("effect", f"{row['estimate']:+.4g}")]
            if row["low"] == row["low"]:
                one["facts"].append(("interval", f"{row['low']:+.3g} to {row['high']:+.3g}"))
            if abs(row["estimate"]) <= row["noise_floor"]:
                one["notes"] = ["Within the noise floor: no effect."]
    return found


def _first(made: Gathered) -> list[dict[str, Any]]:
    """The first heads as a table."""
    if not len(made.ranked):
        return []
    columns = ["site", "estimate", "low", "high", "exact", "verified", "label"]
    return [{"title": "The first heads", "about": made.finding, "rows": made.ranked[columns].head(20)}]
