"""What a report says first: what was found, how sure it is, where controls do as well, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.reporting.drawing import figures
from interp.reporting.sections.baselines import ablation_curve
from interp.reporting.steps.gathered import Gathered
from interp.results.figures.figure import Figure

FIRST = 10
"""Heads in the picture."""
NO_CONTROLS = (
    "Whether these heads do more than others of like layer and output norm is not known: none were switched off here on"
    " prompts that can judge it."
)
CONTROLS = {"random": "random heads of like layer and output norm", "magnitude": "the heads that write most"}


def lead(made: Gathered, methods: str) -> dict[str, Any]:
    """The sentences, the picture and the paragraph of methods; empty where no head was scored."""
    if not len(made.ranked):
        return {}
    picture = drawn(made)
    return {"says": said(made), "picture": picture.png(), "alt": repr(picture), "methods": methods}


def said(made: Gathered) -> list[str]:
    """How sure the ranking is, then for each tower at which sizes the heads found do more than controls, and at which
    they do not."""
    controls = [line for one in made.answers.get("ablation", ()) for line in beats(one)]
    return [*_sure(made.ranked), *(controls or [NO_CONTROLS])]


def _sure(rows: Any) -> list[str]:
    known = rows[rows["low"].notna() & rows["high"].notna()]
    exact = "exact" if rows["method"].iloc[0] == "patch" else "estimates"
    if not len(known):
        return [f"The {len(rows)} effects are {exact} and have no intervals: there is one prompt, or none was drawn."]
    clear = ((known["low"] > 0) | (known["high"] < 0)) & (known["estimate"].abs() > known["noise_floor"].fillna(0))
    first, others = rows.iloc[0], rows.iloc[1:]
    inside = int((others["high"].abs().combine(others["low"].abs(), max) > abs(first["estimate"])).sum())
    apart = {0: "no other head's interval reaches it", 1: "the interval of 1 other reaches as far"}.get(
        inside, f"the intervals of {inside} others reach as far"
    )
    chance = f"of {len(rows)} heads without any effect, about {0.05 * len(rows):.0f} would"
    return [
        f"{int(clear.sum())} of {len(rows)} heads have an effect whose 95% interval over {int(rows['n'].max())} prompts"
        f" leaves out 0 (effects are {exact}; {chance}).",
        f"First is {first['site']}, {first['estimate']:+.3g} [{first['low']:+.3g}, {first['high']:+.3g}]; {apart}.",
    ]


def beats(one: Mapping[str, Any]) -> list[str]:
    """At which numbers of heads the heads found lose more of the gap than each control, their intervals apart."""
    rows = {(row["name"], row["k"]): row for row in one["rows"]}
    made = []
    for name, words in CONTROLS.items():
        sizes = [k for k in one["sizes"] if ("found", k) in rows and (name, k) in rows]
        above = [k for k in sizes if _apart(rows["found", k], rows[name, k])]
        below = [k for k in sizes if k not in above]
        draws = max((rows[name, k].get("draws", 0) for k in sizes), default=0)
        where = f"{one['tower']}, {one['n']} prompts" + (f", {draws} sets" if draws else "")
        if not sizes:
            continue
        if not above:
            made.append(f"The heads found do not beat {words} at any k ({_listed(below)}; {where}).")
        else:
            rest = f", and do not at k = {_listed(below)}" if below else ""
            made.append(f"The heads found beat {words} at k = {_listed(above)}{rest} ({where}).")
    return made


def _apart(found: Mapping[str, Any], control: Mapping[str, Any]) -> bool:
    """Whether the lower end of one is above the upper end of the other; where there are no ends, the numbers."""
    low = found["share"] if found["low"] is None or found["low"] != found["low"] else found["low"]
    high = control["share"] if control["high"] is None or control["high"] != control["high"] else control["high"]
    return bool(low > high)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def drawn(made: Gathered) -> Figure:
    """The first heads with their intervals, and what is lost without them, compared with controls."""
    best = made.ranked.head(FIRST)
    bars = figures.bars(best.to_dict("records"), "", unit=f"effect on {best['metric'].iloc[0]}")
    curves = [figures.drawn(ablation_curve(one)) for one in made.answers.get("ablation", ())][:1]
    return Figure([panel for one in (bars, *curves) for panel in one.panels], across=2)
