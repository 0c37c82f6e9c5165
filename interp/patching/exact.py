"""The sweep behind `interp.patch` and what attributions are checked with: base and source once, then chunk by chunk,
each held against full passes."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.contents import content, named
from interp.hooks.drive.sweep import Answer, Cell, ReplayDiffers, Sweep
from interp.hooks.errors import SiteError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import Tape
from interp.journal import Journal
from interp.metrics.ids import MetricError
from interp.metrics.judge import Metric
from interp.metrics.judges import Judges, columns_wanted
from interp.metrics.reading import site_of
from interp.metrics.shipped import Reading
from interp.patching.alignment import Alignment, How, Reduce
from interp.patching.cells import Grid, Target, grid
from interp.patching.sources import Average, Given, Noise, Source, Sources
from interp.provenance import about, refuse_unwritten
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model

Metrics = Mapping[str, Metric]
BY_HEAD = ("q", "k", "v", "z", "result", "pattern")


@dataclass(frozen=True)
class Question:
    """What is patched where, apart from base, source and metric."""

    model: Model
    targets: Sequence[Target]
    positions: Any = "joint"
    align: How | None = None
    reduce: Reduce | None = None
    source_model: Model | None = None
    seed: int = 0
    out: str | Path | None = None
    budget: int | None = None
    bar: bool = True

    def turned(self) -> Question:
        """The same with base and source in each other's place."""
        how = Alignment(self.align.source, self.align.base) if isinstance(self.align, Alignment) else self.align
        return replace(self, align=how, out=None if self.out is None else Path(self.out) / "reverse")


@dataclass(eq=False)
class Prepared:
    """Base and source recorded, cells made."""

    question: Question
    sweep: Sweep
    judges: Judges
    grid: Grid
    new: Given
    base: dict[str, Tensor]
    source: dict[str, Tensor] | None

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells, in order."""
        return self.grid.cells

    def only(self, numbers: Sequence[int]) -> Prepared:
        """The same with some of the cells."""
        whole = self.grid
        cells, labels = tuple(whole.cells[n] for n in numbers), tuple(whole.labels[n] for n in numbers)
        return replace(self, grid=replace(whole, cells=cells, labels=labels))


def effects(question: Question, x: Inputs, source: Source, metrics: Metrics) -> dict[str, Effects]:
    """The effects of every cell, by metric."""
    start = time.perf_counter()
    if question.out is not None:
        refuse_unwritten(question.model.module)
    journal = None if question.out is None else Journal(question.out)
    task = _task(question, x, source, metrics)
    plan = None if journal is None else journal.known(task)
    ready = prepare(question, x, source, metrics, product=None if plan is None else plan["product"])
    chunks = ready.sweep.chunks(ready.cells, ready.judges.reads) if plan is None else plan["chunks"]
    if journal is not None and plan is not None:
        journal.must_cover(chunks, len(ready.cells))
    if journal is not None and plan is None:
        journal.begin(task, chunks, ready.sweep.product)
    values, floors = run(ready, chunks, journal)
    found = {name: _result(ready, name, values[name], floors[name], task) for name in metrics}
    if journal is not None:
        for n, name in enumerate(metrics):
            folder = journal.folder if len(metrics) == 1 else journal.folder / f"metric{n}"
            seconds = round(time.perf_counter() - start, 3)
            replace(found[name], meta={**found[name].meta, "seconds": seconds}).save(folder)
    return found


def prepare(
    question: Question, x: Inputs, source: Source | Given, metrics: Metrics, *, product: str | None = None
) -> Prepared:
    """Run base and source, and make the cells; a source whose values are given at hand is not run."""
    model = question.model
    sweep = Sweep(
        model.module, model.anatomy, x, model.called_with(x.kwargs), family=model.family, product=product,
        budget=question.budget,
    )  # fmt: skip
    whole = list(dict.fromkeys(site.whole for target in question.targets for site, _ in target.members))
    asked = columns_wanted(metrics, x, model.module)
    old = sweep.record(whole, asked)
    for site, value in old.items():
        if value.ndim < (4 if site.component in BY_HEAD else 3):
            raise SiteError(f"{site} is {list(value.shape)} here, without rows and positions, and cannot be patched.")
    logits = sweep.logits
    judges = Judges(metrics, x, classes=logits.ndim == 2, length=_length(metrics, x, logits, asked))
    kept = columns_wanted(metrics, model.inputs(source), model.module) if is_run(source) else None
    new = (
        source
        if isinstance(source, Given)
        else Sources(model, sweep, old).given(
            source, kept=kept, align=question.align, reduce=question.reduce, source_model=question.source_model
        )
    )
    cells = grid(model.anatomy, question.targets, x, old, new, question.positions)
    return Prepared(
        question, sweep, judges, cells, new, judges(sweep.plain(judges.reads)), _reference(metrics, new, kept)
    )


def _reference(metrics: Metrics, new: Given, kept: Tensor | None) -> dict[str, Tensor] | None:
    """The metrics of the source's own run."""
    if new.logits is None or new.inputs is None:
        return None
    length = _length(metrics, new.inputs, new.logits, kept)
    judges = Judges(metrics, new.inputs, classes=new.logits.ndim == 2, length=length)
    return judges(judges.reads.of(new.logits, kept if new.logits.ndim == 3 else None))


def _length(metrics: Metrics, x: Inputs, answer: Tensor, kept: Tensor | None) -> int:
    """How many positions the answer has. A metric that says which positions it reads means those of the inputs, so
    logits are refused to it that have others: of frames and tokens both, as a transducer's."""
    if site_of(metrics) is not None:
        return x.length if answer.ndim == 2 else answer.shape[1]
    if answer.ndim == 2 or kept is not None:
        return x.length
    named = [metric for metric in metrics.values() if isinstance(metric, Reading)]
    if named and (answer.ndim != 3 or answer.shape[1] != x.length):
        raise MetricError(
            f"the metric {named[0]!r} reads positions of the inputs, of which there are {x.length}, and the logits are"
            f" {list(answer.shape)}: give a metric of your own, f(logits, inputs) -> [row]; it gets them as they are."
        )
    return answer.shape[1]


def run(
    ready: Prepared, chunks: Sequence[tuple[int, int]], journal: Journal | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Effects [cell, prompt] and noise floors by metric, some cells held against full passes."""
    inspected = _inspected(ready.cells, ready.question.seed)
    prompts = len(ready.judges.reads.positions)
    values = {name: torch.zeros(len(ready.cells), prompts, dtype=torch.float64) for name in ready.judges.own}
    floors = dict.fromkeys(values, 0.0)
    with _bar(ready, chunks, journal) as bar:
        ready.sweep.tell = bar.update
        for low, high in chunks:
            done = None if journal is None else journal.read(low, high, dict.fromkeys(values, prompts))
            if done is None:
                done = answered(ready, low, high, inspected)
                if journal is not None:
                    journal.write(low, high, *done)
            for name, part in done[0].items():
                values[name][low:high] = part
                floors[name] = max(floors[name], done[1][name])
    return values, floors


def answered(ready: Prepared, low: int, high: int, inspected: set[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One chunk's effects and noise floors by metric; some of its cells are held against a full pass."""
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
        if answer.number + low in inspected:
            looked.append((cells[answer.number], answer))
    try:
        ready.sweep.inspect(looked, reads)
    except ReplayDiffers as why:
        if min(inspected) < low:
            raise  # chunks before this one were believed
        ready.sweep.distrust(reads, why)
        return answered(ready, low, high, inspected)
    values = {name: torch.zeros(len(cells), len(reads.positions), dtype=torch.float64) for name in gaps}
    for name, found in gaps.items():  # off the device once for all
        values[name][numbers] = torch.where(torch.stack(changed), torch.stack(found).cpu(), 0.0)
    return values, {name: float(torch.stack(found).max()) for name, found in noise.items()}


def _inspected(cells: Sequence[Cell], seed: int) -> set[int]:
    """The first cell that changes something, a random one, and one of the last layer."""
    live = [n for n, cell in enumerate(cells) if bool(cell.changed.any())]
    if not live:
        return set()
    last = max(live, key=lambda n: (cells[n].site.layer or 0, -n))
    return {live[0], random.Random(seed).choice(live), last}


def _bar(ready: Prepared, chunks: Sequence[tuple[int, int]], journal: Journal | None) -> Any:
    """A progress bar in tokens times layers, on a terminal."""
    from tqdm import tqdm

    off = True if not ready.question.bar else None
    total = sum(ready.sweep.cost(ready.cells[a:b]) for a, b in chunks if journal is None or journal.read(a, b) is None)
    return tqdm(total=total, unit="tok", unit_scale=True, desc="patching", delay=2, leave=False, disable=off)


def _result(ready: Prepared, name: str, values: Tensor, floor: float, task: Mapping[str, Any]) -> Effects:
    question, sweep = ready.question, ready.sweep
    tower = question.targets[0].members[0][0].tower
    engine = sweep.engine(tower)
    meta = {
        **about(question.model.module, sweep.base), "direction": "source into base", "corruption": ready.new.kind,
        "metric": repr(ready.judges.judges[name].metric), "seed": question.seed, "engine": type(engine).__name__,
        "products": sweep.product, "positions": task["positions"], "align": task["align"],
        "halvings": sweep.halvings,
    }  # fmt: skip
    if ready.grid.positions is not None and sweep.base.tokens is not None and tower in (None, sweep.base.main):
        meta["tokens"] = list(sweep.base.tokens[0])  # what the positions of a figure are called
    base, source = ready.base[name].cpu(), None if ready.source is None else ready.source[name].cpu()
    return Effects(ready.grid.labels, ready.grid.positions, values, base, source, floor, meta)


def _task(question: Question, x: Inputs, source: Source, metrics: Metrics) -> dict[str, Any]:
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


def is_run(source: Source | Given) -> bool:
    """Whether the source is inputs to run the model on."""
    said = isinstance(source, str) and source in ("zero", "mean", "noise")
    return not said and not isinstance(source, (Average, Noise, Tape, Given))
