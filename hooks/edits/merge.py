"""Tokens merged into others: the value at a position becomes a weighted sum of positions of the same row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.hooks.edits.edits import ValueEdit
from interp.hooks.errors import EditError


@dataclass(frozen=True, eq=False, repr=False)
class MergeTokens(ValueEdit):
    """x[row, target] = sum of weight * x[row, source] over the lines (row, source, target) of `which` [n, 3]."""

    which: Tensor = field(default_factory=lambda: torch.empty(0, 3, dtype=torch.long))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.which.ndim != 2 or self.which.shape[1] != 3 or len(self.which) != len(self.weights):
            raise EditError(
                f"MergeTokens({self.site!r}) needs lines (row, source, target) [n, 3] and a weight each, got"
                f" {list(self.which.shape)} and {list(self.weights.shape)}."
            )

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        row, source, target = self.which.to(x.device).unbind(1)
        out = x.clone()
        out[row, target] = 0
        parts = x[row, source] * self.weights.to(x)[:, None]
        return out.index_put((row, target), parts, accumulate=True)
