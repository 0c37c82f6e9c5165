"""What `interp.patch` and checks of attributions patch: base and source run once, and the cells made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.drive.sweep import Cell, Sweep
from interp.hooks.errors import SiteError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import Tape
from interp.metrics.ids import MetricError
from interp.metrics.judge import Metric
from interp.metrics.judges import Judges, columns_wanted
from interp.metrics.reading import site_of
from interp.metrics.shipped import Reading
from interp.patching.alignment import Alignment, How, Reduce
from interp.patching.cells import Grid, Target, grid
from interp.patching.sources import Average, Given, Noise, Source, Sources

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


def prepare(
    question: Question, x: Inputs, source: Source | Given, metrics: Metrics, *, product: str | None = None
) -> Prepared:
    """Run base and source, and make the cells; a source whose values are given is not run."""
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


def is_run(source: Source | Given) -> bool:
    """Whether the source is inputs to run the model on."""
    said = isinstance(source, str) and source in ("zero", "mean", "noise")
    return not said and not isinstance(source, (Average, Noise, Tape, Given))
