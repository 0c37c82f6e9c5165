"""A metric of one batch under any edits, beside the same batch without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from interp.hooks.edits.edits import Edit
from interp.hooks.inputs.inputs import Inputs
from interp.metrics.judge import Judge, Metric, reads_of

if TYPE_CHECKING:
    from interp.model import Model


class EditedScores:
    """`scores(edits)` is the metric [row] of one forward pass; `base` that of the plain one."""

    def __init__(self, model: Model, x: Inputs, metric: Metric) -> None:
        self.model, self.x = model, x
        logits = model.run(x)["logits"]
        self._reads, self._judge = reads_of(metric, x, logits), Judge(metric, x, classes=logits.ndim == 2)
        self.base = self._of(logits)

    def __call__(self, edits: Sequence[Edit]) -> Tensor:
        return self._of(self.model.run(self.x, edits=edits)["logits"])

    def _of(self, logits: Tensor) -> Tensor:
        return self._judge(self._reads.of(logits)).double().cpu()
