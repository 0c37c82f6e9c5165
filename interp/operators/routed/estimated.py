"""An estimated map: random features guess the weights of runs of keys, and rows keep the keys of the best runs.

After SEA (Lee et al. 2024, arXiv 2310.01777): attention by random features estimates a map of `width` columns, whose
`keep` largest a row keeps; each column represents a run of keys as long as the text over the width, and the softmax is
over their keys. There a trained network makes the estimate from the features' context, at a fixed width. Here the
estimate is the features' own map, summed over each run, which is ours. Runs are of the keys a row sees, so that the
width is that of its own past in a causal tower, and steps of generating choose as a whole pass does.
Cost: quadratic in length as computed here (scores of all keys, masked); memory linear.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import wide
from interp.operators.linear.features import MapAsked, features
from interp.operators.routed.chosen import Choosing, best


@dataclass(frozen=True, eq=False, repr=False)
class Estimated(Choosing):
    """Rows keep the runs of keys that random features say are read most."""

    width: int = 32
    """Columns of the estimated map."""
    keep: int = 8
    """Columns that a row keeps."""
    count: int = 256
    """How many random features."""
    seed: int = 0
    """The seed of random features."""

    def __post_init__(self) -> None:
        if min(self.width, self.keep, self.count) < 1:
            raise EditError(f"{self!r}: width, keep and count are at least 1.")

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        maps = features(part, MapAsked("random", self.count, self.seed))
        a = maps.q(wide(part.q[:, :, rows])) @ maps.k(wide(part.k)).repeat_interleave(part.group, 1).transpose(-1, -2)
        order = seen.cumsum(-1) - 1
        total = seen.sum(-1, keepdim=True).clamp(min=1)
        column = (order.clamp(min=0) * self.width // total.clamp(min=self.width)).clamp(max=self.width - 1)
        zeros = a.new_zeros(*a.shape[:3], self.width)
        mass = zeros.scatter_add(-1, column, a * seen)
        there = zeros.scatter_add(-1, column, seen.to(a)) > 0
        return best(mass, self.keep, there).gather(-1, column) & seen
