"""What every patching method needs of its inputs and metric: pairs that line up, answers as ids, what is read of the
logits, and values that are one finite number a row, or an error that says which row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.drive.sweep import Reads
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.metrics.ids import Ids, ids
from interp.metrics.places import Pooled, pooled
from interp.metrics.reading import fitted, handed_over, positions_read, site_of
from interp.metrics.shipped import Reading, places

if TYPE_CHECKING:
    from interp.model import Model

Metric = Callable[[Tensor, Any], Tensor]


def reads_of(metric: Metric, x: Inputs, logits: Tensor) -> Reads:
    """What the metric says it reads; all of the logits, or of the place it names, where it says nothing."""
    handed_over(metric)
    if logits.ndim == 2:
        columns = metric.columns if isinstance(metric, Reading) else None
        return Reads(torch.zeros(len(logits), 1, dtype=torch.long), columns)
    if site_of(metric) is not None:
        mask = fitted(positions_read(x), *logits.shape[:2])
        every = torch.arange(mask.shape[1]).expand(len(mask), -1)
        return Reads(metric.places(mask)[0].cpu() if isinstance(metric, Pooled) else every, None)
    if not isinstance(metric, Reading):
        return Reads(torch.arange(logits.shape[1]).expand(len(logits), -1), None)
    at = places(metric.positions, x.valid)
    if bool((at < 0).any()):
        raise InputsError(
            "the metric reads different numbers of positions in different rows: make one call for each kind of row."
        )
    return Reads(at.cpu(), metric.columns)


def answer_ids(model: Model, answers: Any) -> Ids:
    """One tuple of ids a row, from a tensor, or from ids, words, or lists of either; one word is one row."""
    from interp.prompts.vocabulary import Vocabulary

    if torch.is_tensor(answers):
        return ids(answers)
    words = Vocabulary(model)
    given = [answers] if isinstance(answers, (str, int)) else answers
    rows = [row if isinstance(row, (list, tuple)) else [row] for row in given]
    return tuple(tuple(words.single(i, "answer") for i in row) for row in rows)


def lined_up(model: Model, base: Any, source: Any) -> tuple[Inputs, Inputs]:
    """Both as inputs, checked to agree in shape and padding."""
    x, y = model.inputs(base), model.inputs(source)
    must_line_up(x, y)
    return x, y


def must_line_up(x: Inputs, y: Inputs, *, instead: str = "") -> None:
    """Refuse a base and a source that differ in shape or padding; `instead` says what helps, where something does."""
    if y.valid.shape != x.valid.shape or not torch.equal(y.valid, x.valid):
        raise InputsError(
            f"base has {list(x.valid.shape)} [rows, positions] and source {list(y.valid.shape)}, or their padding"
            f" differs: patching needs pairs that line up token by token{instead}."
        )


ALIGN = "; say align='index', 'suffix' or interp.patching.align(...) for those that do not"
"""What helps where pairs may be aligned."""


def judged(metric: Metric, x: Inputs, logits: Tensor, kept: Tensor | None = None) -> Tensor:
    """The metric of full logits, or of those of the `kept` columns, per row."""
    return Judge(metric, x, classes=logits.ndim == 2)(reads_of(metric, x, logits).of(logits, kept))


class Judge:
    """A metric on the logits that were read, checked to give one finite number a row."""

    def __init__(self, metric: Metric, x: Inputs, *, classes: bool) -> None:
        self.metric, self.x, self.classes = metric, x, classes

    def __call__(self, read: Tensor) -> Tensor:
        if isinstance(self.metric, Reading):
            value = self.metric.score(read.float() if read.dtype != torch.float64 else read)
        elif isinstance(self.metric, Pooled):
            value = self.metric.score(self._vectors(read))
        else:
            value = self.metric(read[:, 0] if self.classes else read, self.x)
        if not torch.is_tensor(value) or value.shape != (len(read),):
            shape = list(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise InputsError(f"a metric gives one number per row, [{len(read)}]; {self.metric!r} gave {shape}.")
        if not bool(torch.isfinite(value).all()):
            raise InputsError(
                f"the metric {self.metric!r} is not finite in row {int((~torch.isfinite(value)).nonzero()[0])}."
            )
        return value

    def _vectors(self, read: Tensor) -> Tensor:
        """One vector a row, of the columns that were read of a place."""
        assert isinstance(self.metric, Pooled)
        if self.classes:
            return self.metric.vectors(read[:, 0], None)
        mask = positions_read(self.x)
        real = mask.new_ones(read.shape[:2]) if bool(mask.all()) else self.metric.places(mask)[1]
        return pooled(read, real.to(read.device))
