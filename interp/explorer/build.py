"""A payload of the page from a model, inputs and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.explorer.crossed import Crossed, crossed_example, crossed_patterns, crossings
from interp.explorer.looks import FEWEST, ROOM, example, fitting, patterns, stacks
from interp.explorer.measures import crossed_measures, described, measured
from interp.explorer.payload.plain import ExplorerError
from interp.explorer.pictured import Pictures, images, pixels
from interp.explorer.rolled import rollouts
from interp.explorer.says import says
from interp.hooks.anatomy.towers import Tower
from interp.hooks.head_names import head_of
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import plain_layer
from interp.kernels.errors import InterpError
from interp.metrics.named import unit
from interp.provenance import about, name_of
from interp.results.heads_table import method_of, read_heads
from interp.results.intervals import spanned
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

KEPT = ("low", "high", "noise_floor", "n", "exact", "verified")


def payload(
    model: Model,
    data: Any,
    *,
    results: Mapping[str, Any] | Sequence[Any] = (),
    circuit: Any = None,
    examples: int | None = None,
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
    across, why = crossings(model, x)
    warnings += why
    statistics += [row for one in across for row in crossed_measures(model, x, one.tower, one.rows)]
    rows += [row for row in statistics if row["method"] not in methods]
    if not rows:
        raise ExplorerError(f"there is no number to show for {type(model.module).__name__}. {' '.join(warnings)}")
    used = {row["method"] for row in rows}
    methods |= {name: one for name, one in described().items() if name in used and name not in methods}
    called = name_of(model.module)
    made: dict[str, Any] = {
        "title": title or f"Heads of {called}",
        "finding": finding or f"How every head of {called} attends on {x.batch} example{'s' * (x.batch != 1)}.",
        "facts": [("model", _in_full(called, type(model.module).__name__))]
        + [(name, str(one).partition(": ")[2]) for name, one in model.towers.items()]
        + [("examples", str(x.batch))],
        "warnings": warnings,
        "towers": [_tower(tower) for tower in model.towers.values()],
        "main": model.anatomy.main or next(iter(model.towers)),
        "scores": rows,
        "methods": methods,
        **_looks(model, x, towers, across, examples, seen),
        "cards": says(model, x),
        "provenance": about(model.module, x),
    }
    if circuit is not None:
        made["circuit"] = {"title": "Circuit", "about": repr(circuit), "edges": circuit.to_frame()}
    return made


def _in_full(called: str, kind: str) -> str:
    return called if called == kind else f"{called} ({kind})"


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


def _inputs(model: Model, data: Any, pictures: Sequence[Any] | None) -> tuple[Inputs, Pictures]:
    """The inputs and their pictures: those given, a task's own, or the model's pixels."""
    if isinstance(data, Task):
        task = data if data.model is model else data.on(model)
        x = task.clean
        own = [row.image for row in task.rows if row.image is not None]
    else:
        x, own = model.inputs(data), []
    given = list(pictures) if pictures is not None else own
    return x, Pictures(given) if given or pictures is not None else pixels(model, x)


def _tower(tower: Tower) -> dict[str, Any]:
    return {"name": tower.name, "layers": [plain_layer(layer.index) for layer in tower.layers],
            "heads": [layer.heads for layer in tower.layers],
            "kv_heads": [layer.kv_heads for layer in tower.layers]}  # fmt: skip


def _looks(
    model: Model,
    x: Inputs,
    towers: list[tuple[Tower, Inputs]],
    across: list[Crossed],
    count: int | None,
    pictures: Pictures,
) -> dict[str, list[Any]]:
    held: dict[str, list[Any]] = {"examples": [], "patterns": [], "images": []}
    room = ROOM // max(1, len(towers) + len(across))
    for tower, own in towers:
        wanted = fitting(tower, own, room) if count is None else count
        chosen, start = range(min(wanted, own.batch)), len(held["examples"])
        if not chosen:
            continue
        suffix = f", {tower.name}" if len(towers) > 1 else ""
        blocks = patterns(model, x, tower, own, chosen, room)
        shown = [images(own, row, start + row, pictures) for row in chosen]
        flows = rollouts(model, x, tower, own, blocks) if any(shown) else [None] * len(chosen)
        for row, flow in zip(chosen, flows, strict=True):
            seen = example(own, row, f"example {row}{suffix}")
            held["examples"].append(seen if flow is None else {**seen, "rollout": flow})
        held["patterns"] += [{**block, "example": start + block["example"]} for block in blocks]
        held["images"] += [one for some in shown for one in some]
    for one in across:
        chosen, start = range(min(FEWEST if count is None else count, one.rows.batch)), len(held["examples"])
        if not chosen:
            continue
        held["examples"] += [crossed_example(one, row) for row in chosen]
        for row in chosen:
            held["images"] += images(one.keys, row, start + row, pictures, places=one.places(row))
        blocks = crossed_patterns(model, x, one, chosen, room)
        held["patterns"] += [{**block, "example": start + block["example"]} for block in blocks]
    return held


def named(results: Mapping[str, Any] | Sequence[Any]) -> list[tuple[str, Any]]:
    """Results with the names the menu gives them: those given, else what the result calls its method."""
    if isinstance(results, Mapping):
        return [(str(name), result) for name, result in results.items()]
    found: dict[str, Any] = {}
    for result in results:
        name = method_of(result)
        while name in found:
            name += "'"
        found[name] = result
    return list(found.items())


def rows_of(name: str, result: Any) -> list[dict[str, Any]]:
    """The heads of a result's table as rows of the scores."""
    try:
        frame = read_heads(result)
    except InterpError as why:
        raise ExplorerError(f"results[{name!r}]: {why}") from why
    if "method" in frame and frame["method"].nunique() > 1:
        raise ExplorerError(f"results[{name!r}] holds several methods: give one a name, as a dict of results.")
    kept = ["site", "estimate", *(column for column in KEPT if column in frame)]
    return [{**row, "site": str(row["site"]), "method": name} for row in frame[kept].to_dict("records")]


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """The head with the largest number of the first result."""
    mine = [row for row in rows if row["method"] == rows[0]["method"] and row["estimate"] == row["estimate"]]
    if not mine:
        return ""
    best = max(mine, key=lambda row: abs(row["estimate"]))
    span = spanned(best["low"], best["high"]) if "low" in best else ""
    value = f"{best['estimate']:+.3g}{span}"
    return f"{best['method']}: of {len(mine)} heads {head_of(best['site'])} has the largest value, {value}."


def _described(result: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    meta, floor = getattr(result, "meta", None) or {}, getattr(result, "noise_floor", None)
    signed = floor is not None or any(row["estimate"] < 0 for row in rows)
    metric = unit(meta.get("metric"))
    words = f"{type(result).__name__}, {len(rows)} heads" + (
        f", {rows[0]['n']} examples" if rows and "n" in rows[0] else ""
    )
    found = {"kind": "signed" if signed else "sequential", "unit": metric, "about": words}
    return found if floor is None else {**found, "floor": floor}
