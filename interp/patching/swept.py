"""The sweep behind `interp.patch` and checks of attributions: chunk by chunk, some cells compared with full passes.

A sweep that is written down (`out=`) chooses its matrix products and the size of its chunks by what the processor is
and by `CHUNK`, not by a measured time or by the memory that happens to be free, so that every shard of it and a run of
the whole are cut alike.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.cells.calls import CHUNK, product_of
from interp.cells.journal import PLAN, Values, plan_of
from interp.cells.shards import Frame, Shard, ShardDone, framed, mark, part, refuse_shard
from interp.cells.work import Begun, Bounds, Builder, Floors, begin, gathered, read_back
from interp.contents import content, named
from interp.hooks.drive.sweep import Answer, Cell, ReplayDiffers
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import Tape
from interp.metrics.named import metric_name
from interp.patching.exact import Metrics, Prepared, Question, is_run, prepare
from interp.patching.sources import Average, Source
from interp.provenance import about, refuse_unwritten
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(eq=False)
class Patches:
    """The cells of a sweep as work."""

    ready: Prepared
    task: Mapping[str, Any] = field(default_factory=dict)
    recipe: Builder | None = None
    inspected: set[int] = field(init=False)
    """Cells that are compared with a full pass."""
    believed: bool = field(init=False, default=False)
    """Whether one of them was, in this process."""

    def __post_init__(self) -> None:
        self.inspected = _inspected(self.ready.cells, self.ready.question.seed)

    @property
    def model(self) -> Model:
        """The one that is patched."""
        return self.ready.question.model

    @property
    def count(self) -> int:
        """How many cells there are."""
        return len(self.ready.cells)

    @property
    def names(self) -> dict[str, int]:
        """Every metric has an effect per prompt."""
        return dict.fromkeys(self.ready.judges.own, len(self.ready.judges.reads.positions))

    @property
    def product(self) -> str:
        """As the sweep has it."""
        return self.ready.sweep.product

    def bounds(self) -> Bounds:
        """Stretches that keep within the budget."""
        return self.ready.sweep.chunks(self.ready.cells, self.ready.judges.reads)

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """One chunk's effects and noise floors by metric; some of its cells are compared with a full pass. Whoever
        starts further on holds the first of them against one beforehand: a replay that is not to be believed is not
        believed by any shard."""
        if not self.believed and self.inspected and low > min(self.inspected):
            self._look(min(self.inspected))
        self.believed = True
        return self._answered(low, high)

    def _look(self, first: int) -> None:
        ready, reads = self.ready, self.ready.judges.reads
        cell = ready.cells[first]
        looked = [(cell, answer) for answer in ready.sweep.chunk([cell], reads)]
        try:
            ready.sweep.inspect(looked, reads)
        except ReplayDiffers as why:
            ready.sweep.distrust(reads, why)

    def _answered(self, low: int, high: int) -> tuple[Values, Floors]:
        ready = self.ready
        cells, judges, reads = ready.cells[low:high], ready.judges, ready.judges.reads
        looked: list[tuple[Cell, Answer]] = []
        numbers, changed = [], []
        gaps: dict[str, list[Tensor]] = {name: [] for name in judges.own}
        noise: dict[str, list[Tensor]] = {name: [] for name in judges.own}
        for answer in ready.sweep.chunk(cells, reads):
            patched, unchanged = judges(answer.logits), judges(answer.unchanged)
            for name in gaps:
                noise[name].append((unchanged[name] - ready.base[name]).abs().max())
                gaps[name].append((patched[name] - unchanged[name]).double())
            numbers.append(answer.number)
            changed.append(answer.changed)
            if answer.number + low in self.inspected:
                looked.append((cells[answer.number], answer))
        try:
            ready.sweep.inspect(looked, reads)
        except ReplayDiffers as why:
            if min(self.inspected) < low:
                raise  # chunks before this one were believed
            ready.sweep.distrust(reads, why)
            return self._answered(low, high)
        values = {name: torch.zeros(len(cells), len(reads.positions), dtype=torch.float64) for name in gaps}
        for name, found in gaps.items():  # off the device once for all
            values[name][numbers] = torch.where(torch.stack(changed), torch.stack(found).cpu(), 0.0)
        return values, {name: float(torch.stack(found).max()) for name, found in noise.items()}


def built(model: Model, *, x: Inputs, source: Any, metrics: Metrics, product: str, **how: Any) -> Patches:
    """The same work in another process, on a model that is the same."""
    return Patches(prepare(Question(model, **how, bar=False), x, source, metrics, product=product))


def effects(question: Question, x: Inputs, source: Source, metrics: Metrics, engine: Any = None) -> dict[str, Effects]:
    """The effects of every cell, by metric."""
    refuse_shard(question.out)
    found = _swept(question, x, source, metrics, None, engine)
    if question.out is not None:
        _saved(question.out, found)
    return found


def shard_of(
    shard: Shard, question: Question, x: Inputs, source: Source, metrics: Metrics, engine: Any = None
) -> ShardDone:
    """The shard's chunks, written down with what the effects need in addition."""
    assert question.out is not None
    mark(question.out, "interp.patch", shard)
    framed(question.out, _frame(_swept(question, x, source, metrics, shard, engine)))
    return part(question.out, "interp.patch", shard)


def exactly(ready: Prepared) -> Values:
    """The effects of cells that were prepared, by metric [cell, prompt]."""
    work = Patches(ready)
    return run(work, begin(work))[0]


def _swept(
    question: Question, x: Inputs, source: Source, metrics: Metrics, shard: Shard | None, engine: Any
) -> dict[str, Effects]:
    """The effects by metric, 0 where another shard has them."""
    start, out = time.perf_counter(), question.out
    if out is not None:
        refuse_unwritten(question.model.module)
    task = task_of(question, x, source, metrics)
    question, product = _written(question, task, out is not None or engine is not None)
    ready = prepare(question, x, source, metrics, product=product)
    work = Patches(ready, task, _recipe(question, x, source, metrics, ready))
    values, floors = run(work, begin(work, out=out, shard=shard), engine)
    found = {name: _result(ready, name, values[name], floors[name], task) for name in metrics}
    seconds = {"seconds": round(time.perf_counter() - start, 3)} if out is not None else {}
    return {name: replace(one, meta={**one.meta, **seconds}) for name, one in found.items()}


def _written(question: Question, task: Mapping[str, Any], shared: bool) -> tuple[Question, str | None]:
    """A question that is written down or shared out, and its products: those of the plan where there is one."""
    if not shared:
        return question, None
    product = None if question.out is None else product_of(question.out, task, question.model)
    return replace(question, budget=CHUNK if question.budget is None else question.budget), product


def _recipe(question: Question, x: Inputs, source: Source, metrics: Metrics, ready: Prepared) -> Builder | None:
    """None where a second model runs the source: another process holds one."""
    if question.source_model is not None:
        return None
    kept = ("targets", "positions", "align", "reduce", "seed", "budget")
    how = {name: getattr(question, name) for name in kept}
    return Builder(
        "interp.patching.swept:built",
        {**how, "x": x, "source": source, "metrics": metrics, "product": ready.sweep.product},
    )


def run(work: Patches, begun: Begun, engine: Any = None) -> tuple[Values, Floors]:
    """Effects [cell, prompt] and noise floors by metric."""
    sweep = work.ready.sweep
    if engine is not None:  # which has a bar of its own
        return gathered(work, begun.run(engine))
    with _bar(work, begun.todo) as bar:
        sweep.tell = bar.update
        return gathered(work, begun.run())


def _inspected(cells: Sequence[Cell], seed: int) -> set[int]:
    """The first cell that changes something, a random one, and one of the last layer."""
    live = [n for n, cell in enumerate(cells) if bool(cell.changed.any())]
    if not live:
        return set()
    last = max(live, key=lambda n: (cells[n].site.layer or 0, -n))
    return {live[0], random.Random(seed).choice(live), last}


def _bar(work: Patches, todo: Bounds) -> Any:
    """A progress bar in tokens times layers, on a terminal."""
    from tqdm import tqdm

    ready = work.ready
    off = True if not ready.question.bar else None
    total = sum(ready.sweep.cost(ready.cells[a:b]) for a, b in todo)
    return tqdm(total=total, unit="tok", unit_scale=True, desc="patching", delay=2, leave=False, disable=off)


def _saved(out: str | Path, found: Mapping[str, Effects]) -> None:
    """Every metric's effects: in the directory itself where there is one metric, else in one of its own."""
    for one, place in zip(found.values(), _places(out, len(found)), strict=True):
        one.save(place)


def _places(out: str | Path, count: int) -> list[Path]:
    return [Path(out)] if count == 1 else [Path(out) / f"metric{n}" for n in range(count)]


def _frame(found: Mapping[str, Effects]) -> Frame:
    """What effects need in addition to their values."""
    tensors = {
        f"{n}.{name}": value
        for n, one in enumerate(found.values())
        for name, value in one.tensors().items()
        if name != "values"
    }
    facts = {name: {**one.facts(), "noise_floor": None} for name, one in found.items()}  # one comes with the cells
    return Frame({"metrics": facts}, tensors)


def _restored(frame: Frame, values: Values | None, floors: Floors) -> dict[str, Effects]:
    """Effects of a frame with their values, or zeros."""
    found = {}
    for n, (name, facts) in enumerate(frame.facts["metrics"].items()):
        tensors = {key.partition(".")[2]: one for key, one in frame.tensors.items() if key.startswith(f"{n}.")}
        zero = torch.zeros(len(facts["sites"]), len(tensors["base"]), dtype=torch.float64)
        said = {**facts, "noise_floor": floors.get(name, 0.0)}
        found[name] = Effects.restored(said, {**tensors, "values": zero if values is None else values[name]})
    return found


def unswept(frame: Frame) -> dict[str, Effects]:
    """The effects of a shard before it is merged: zeros."""
    return _restored(frame, None, {})


def effects_in(folder: Path) -> dict[str, Effects]:
    """The effects of a sweep that is whole, by metric."""
    names = list(plan_of(folder / PLAN)["task"]["metrics"])
    return {name: Effects.load(place) for name, place in zip(names, _places(folder, len(names)), strict=True)}


def finished(folder: Path, frame: Frame) -> Effects | dict[str, Effects]:
    """The result of a sweep all of whose chunks are there, as the call itself writes it; a reverse one is there."""
    found = _restored(frame, *read_back(folder))
    _saved(folder, found)
    if (folder / "reverse" / PLAN).exists():
        back = effects_in(folder / "reverse")
        found = {name: replace(one, reverse=back[name]) for name, one in found.items()}
    return found[""] if list(found) == [""] else found


def _result(ready: Prepared, name: str, values: Tensor, floor: float, task: Mapping[str, Any]) -> Effects:
    question, sweep = ready.question, ready.sweep
    tower = question.targets[0].members[0][0].tower
    engine = sweep.engine(tower)
    meta = {
        **about(question.model.module, sweep.base), "direction": "source into base", "corruption": ready.new.kind,
        "metric": metric_name(ready.judges.judges[name].metric), "seed": question.seed, "engine": type(engine).__name__,
        "products": sweep.product, "positions": task["positions"], "align": task["align"],
        "halvings": sweep.halvings,
    }  # fmt: skip
    if ready.grid.positions is not None and sweep.base.tokens is not None and tower in (None, sweep.base.main):
        meta["tokens"] = list(sweep.base.tokens[0])  # what the positions of a figure are called
    base, source = ready.base[name].cpu(), None if ready.source is None else ready.source[name].cpu()
    return Effects(ready.grid.labels, ready.grid.positions, values, base, source, floor, meta)


def task_of(question: Question, x: Inputs, source: Source, metrics: Metrics) -> dict[str, Any]:
    """What makes this sweep this sweep, as plain values."""
    model = question.model
    other = question.source_model
    return {
        "model": about(model.module, x), "source": _digest(question, source),
        "source_model": None if other is None else about(other.module, None)["model_hash"],
        "targets": [target.label for target in question.targets], "positions": _said(question.positions),
        "align": _said(question.align), "reduce": question.reduce, "seed": question.seed,
        "metrics": {name: repr(metric) if question.out is None else named(metric) for name, metric in metrics.items()},
    }  # fmt: skip


def _said(value: Any) -> str | None:
    if torch.is_tensor(value):
        return hashlib.sha256(repr(value.tolist()).encode()).hexdigest()
    return None if value is None else str(value)


def _digest(question: Question, source: Source) -> str:
    """What the source is; of a sweep that is written down, by content."""
    model, kept = question.model, question.out is not None
    if isinstance(source, Tape):
        held = content({str(site): source[site] for site in source.sites}) if kept else ""
        return f"{None if source.inputs is None else source.inputs.digest()} {held}".strip()
    if isinstance(source, Average):
        listed = isinstance(source.data, list | tuple)
        held = (content(source.data) if listed else model.inputs(source.data).digest()) if kept else ""
        return f"{source!r} {held}".strip()
    return model.inputs(source).digest() if is_run(source) else repr(source)
