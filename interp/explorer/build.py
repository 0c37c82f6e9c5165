"""A payload of the page from a model, inputs and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.explorer.looks import ROOM, example, images, patterns, pixels, stacks
from interp.explorer.measures import described, measured
from interp.explorer.payload.plain import ExplorerError
from interp.explorer.payload.scores import SITE
from interp.explorer.says import says
from interp.hooks.anatomy.towers import Tower
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import parse
from interp.kernels.errors import InterpError
from interp.provenance import about
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

SPELLED = ("estimate", "score", "first")
"""Columns of a result's table that hold its number, in the order they are looked for."""
KEPT = ("low", "high", "noise_floor", "n", "exact", "verified")


def payload(
    model: Model,
    data: Any,
    *,
    results: Mapping[str, Any] | Sequence[Any] = (),
    circuit: Any = None,
    examples: int = 2,
    pictures: Sequence[Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """What `interp.explorer.page` takes: statistics of every head on the data, the results given, and of the first
    examples the patterns, pictures and what each head promotes at the last token."""
    x, seen = _inputs(model, data, pictures)
    towers, warnings = stacks(model, x)
    tables = {name: (result, rows_of(name, result)) for name, result in named(results)}
    rows = [row for _, found in tables.values() for row in found]
    methods = {name: _described(result, found) for name, (result, found) in tables.items()}
    finding = _finding(rows)
    towers, statistics = _statistics(model, x, towers, warnings)
    rows += [row for row in statistics if row["method"] not in methods]
    if not rows:
        raise ExplorerError(f"nothing to show of {type(model.module).__name__}. {' '.join(warnings)}")
    used = {row["method"] for row in rows}
    methods |= {name: one for name, one in described().items() if name in used and name not in methods}
    kind = type(model.module).__name__
    made: dict[str, Any] = {
        "title": title or f"Heads of {kind}",
        "finding": finding or f"How every head of {kind} attends on {x.batch} examples.",
        "facts": [(name, str(one).partition(": ")[2]) for name, one in model.towers.items()]
        + [("examples", str(x.batch))],
        "warnings": warnings,
        "towers": [_tower(tower) for tower in model.towers.values()],
        "main": model.anatomy.main or next(iter(model.towers)),
        "scores": rows,
        "methods": methods,
        **_looks(model, x, towers, examples, seen),
        "cards": says(model, x),
        "provenance": about(model.module, x),
    }
    if circuit is not None:
        made["circuit"] = {"title": "Circuit", "about": repr(circuit), "edges": circuit.to_frame()}
    return made


def _statistics(
    model: Model, x: Inputs, towers: list[tuple[Tower, Inputs]], warnings: list[str]
) -> tuple[list[tuple[Tower, Inputs]], list[dict[str, Any]]]:
    """What attention says of every head, and the towers of which it says so."""
    found = [(tower, own, measured(model, x, tower, own)) for tower, own in towers]
    warnings += [
        f"{tower.name}: where it looks is not shown, since it attends in windows."
        for tower, _, some in found
        if some is None
    ]
    kept = [(tower, own) for tower, own, some in found if some is not None]
    return kept, [row for _, _, some in found for row in some or ()]


def _inputs(model: Model, data: Any, pictures: Sequence[Any] | None) -> tuple[Inputs, list[Any]]:
    """The inputs and their pictures: those given, a task's own, or the model's pixels."""
    if isinstance(data, Task):
        task = data if data.model is model else data.on(model)
        x = task.clean
        own = [row.image for row in task.rows if row.image is not None]
    else:
        x, own = model.inputs(data), []
    return x, list(pictures) if pictures is not None else own or pixels(model, x)


def _tower(tower: Tower) -> dict[str, Any]:
    return {"name": tower.name, "layers": [layer.index for layer in tower.layers],
            "heads": [layer.heads for layer in tower.layers],
            "kv_heads": [layer.kv_heads for layer in tower.layers]}  # fmt: skip


def _looks(
    model: Model, x: Inputs, towers: list[tuple[Tower, Inputs]], count: int, pictures: list[Any]
) -> dict[str, list[Any]]:
    held: dict[str, list[Any]] = {"examples": [], "patterns": [], "images": []}
    for tower, own in towers:
        chosen, start = range(min(count, own.batch)), len(held["examples"])
        if not chosen:
            continue
        suffix = f", {tower.name}" if len(towers) > 1 else ""
        held["examples"] += [example(own, row, f"example {row}{suffix}") for row in chosen]
        blocks = patterns(model, x, tower, own, chosen, ROOM // len(towers))
        held["patterns"] += [{**block, "example": start + block["example"]} for block in blocks]
        held["images"] += [one for row in chosen for one in images(own, row, start + row, pictures)]
    return held


def named(results: Mapping[str, Any] | Sequence[Any]) -> list[tuple[str, Any]]:
    """Results with the names the menu gives them: those given, else what the result calls its method."""
    if isinstance(results, Mapping):
        return [(str(name), result) for name, result in results.items()]
    found: dict[str, Any] = {}
    for result in results:
        meta = getattr(result, "meta", None) or {}
        name = str(meta.get("method") or type(result).__name__.lower())
        while name in found:
            name += "'"
        found[name] = result
    return list(found.items())


def rows_of(name: str, result: Any) -> list[dict[str, Any]]:
    """The heads of a result's table as rows of the scores."""
    if not hasattr(result, "to_frame"):
        raise ExplorerError(f"results[{name!r}] is a {type(result).__name__}, which has no to_frame().")
    frame = result.to_frame()
    number = next((column for column in SPELLED if column in frame), None)
    if "site" not in frame or number is None:
        raise ExplorerError(f"results[{name!r}] has a table of {', '.join(map(str, frame))}: expected site, estimate.")
    if "position" in frame and frame["position"].notna().any():
        raise ExplorerError(f"results[{name!r}] has a position axis: patch with positions='joint' to see heads.")
    if "method" in frame and frame["method"].nunique() > 1:
        raise ExplorerError(f"results[{name!r}] holds several methods: give one a name, as a dict of results.")
    kept = [column for column in KEPT if column in frame]
    return [
        {"site": str(row["site"]), "method": name, "estimate": row[number], **{column: row[column] for column in kept}}
        for row in frame.to_dict("records")
        if _is_head(str(row["site"]))
    ]


def _is_head(site: str) -> bool:
    try:
        return parse(site).heads is not None
    except InterpError:
        return False


def _head(site: str) -> str:
    """Its name without a component."""
    found = SITE.match(site)
    return site if found is None else site[: found.end("head")]


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """The head with the largest number of the first result."""
    mine = [row for row in rows if row["method"] == rows[0]["method"] and row["estimate"] == row["estimate"]]
    if not mine:
        return ""
    best = max(mine, key=lambda row: abs(row["estimate"]))
    span = f" [{best['low']:+.3g}, {best['high']:+.3g}]" if "low" in best else ""
    value = f"{best['estimate']:+.3g}{span}"
    return f"{best['method']}: of {len(mine)} heads {_head(best['site'])} has the largest value, {value}."


def _described(result: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    meta, floor = getattr(result, "meta", None) or {}, getattr(result, "noise_floor", None)
    signed = floor is not None or any(row["estimate"] < 0 for row in rows)
    metric = str(meta.get("metric") or "").partition("(")[0]
    words = f"{type(result).__name__}, {len(rows)} heads" + (
        f", {rows[0]['n']} examples" if rows and "n" in rows[0] else ""
    )
    found = {"kind": "signed" if signed else "sequential", "unit": metric, "about": words}
    return found if floor is None else {**found, "floor": floor}
