"""A metric of one batch under any edits, compared with the same batch without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from interp.hooks.edits.edits import Edit
from interp.hooks.inputs.inputs import Inputs
from interp.metrics.judge import Metric, judged
from interp.metrics.reading import on, reading

if TYPE_CHECKING:
    from interp.model import Model


def scored(model: Model, x: Inputs, metric: Metric) -> Tensor:
    """The metric [row] of a plain pass, wherever it reads."""
    return EditedScores(model, x, metric).base


class EditedScores:
    """`scores(edits)` is the metric [row] of one forward pass; `base` that of the plain one."""

    def __init__(self, model: Model, x: Inputs, metric: Metric) -> None:
        self.model, self.x, self.metric = model, x, on(model, metric)
        self.base = self([])

    def __call__(self, edits: Sequence[Edit]) -> Tensor:
        with reading(self.model, self.metric):
            answer = self.model.run(self.x, edits=edits)["logits"]
            return judged(self.metric, self.x, answer).double().cpu()
