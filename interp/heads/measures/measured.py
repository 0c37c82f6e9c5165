"""One measure of head importance: a number per head and example, and how the numbers become one per head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from interp.hooks.errors import ModelError

Order = Literal["abs", "high", "low"]
Reduce = Literal["mean", "layer", "ratio", "difference"]


@dataclass(frozen=True, eq=False)
class Measured:
    """`values` [head, example]; `order` says which estimates come first: large magnitudes, high or low numbers."""

    method: str
    """The name of the measure, as in `by=`."""
    values: Tensor
    """[head, example]."""
    order: Order = "high"
    """Which estimates come first in a ranking: "abs" large magnitudes, "high" high or "low" low numbers."""
    reduce: Reduce = "mean"
    """Over examples the mean; then over the l2 norm of the layer's heads, or against `other`."""
    other: Tensor | None = None
    """[head, example] of the data it is compared with."""
    seeds: Tensor | None = None
    """[seed, head], the estimates of each seed, where there are several."""
    unit: Literal["example", "seed"] = "example"
    """What the columns of `values` are."""
    other_groups: tuple[str, ...] = ()
    """What each example of `other` shares with others, for the intervals."""
    passes: float | None = None
    """Forward and backward passes that it takes alone; measures that share a run share its passes."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the measure, such as its noise floor."""

    def __post_init__(self) -> None:
        for values in (self.values, self.other):
            if values is not None and not bool(torch.isfinite(values).all()):
                head = int((~torch.isfinite(values)).any(1).nonzero()[0])
                raise ModelError(f"by={self.method!r} is not finite at head number {head}: nothing can be ranked.")

    @property
    def count(self) -> int:
        """How many examples (or seeds) an estimate is made of, on the side that has fewer."""
        return min(one.shape[1] for one in (self.values, self.other) if one is not None)

    def estimates(self, shares: Tensor, layers: Tensor, others: Tensor | None = None) -> Tensor:
        """[draw, head] from each draw's shares of the examples [draw, example]; `layers` [head] numbers the layers."""
        mean = shares @ self.values.T
        if self.reduce == "mean":
            return mean
        if self.reduce == "layer":
            size = torch.zeros(len(mean), int(layers.max()) + 1, dtype=mean.dtype)
            size.index_add_(1, layers, mean.square())
            norm = size.sqrt()[:, layers]
            return torch.where(norm > 0, mean / norm, 0.0)
        assert self.other is not None
        assert others is not None
        against = others @ self.other.T
        return mean - against if self.reduce == "difference" else _ratio(mean, against)

    def oriented(self, estimates: Tensor) -> Tensor:
        """The same, so that larger comes first."""
        return {"abs": estimates.abs(), "high": estimates, "low": -estimates}[self.order]


def _ratio(mean: Tensor, against: Tensor) -> Tensor:
    least = torch.where(against > 0, against, torch.inf).amin(-1, keepdim=True)
    floor = torch.where(torch.isfinite(least), least, 1.0)
    return mean / torch.maximum(against, floor)
