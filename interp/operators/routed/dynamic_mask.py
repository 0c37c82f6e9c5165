"""Dynamic mask attention: each value says how much its key is worth to every row, and rows keep the worthiest.

After Shi et al. 2025 (arXiv 2508.02124): a gate of the values, the same for every query,

    delta_j = exp(amount softplus(gate . v_j))

is added to the scores, and a row keeps the `keep` visible keys of the largest delta, all of them where there are no
more. The authors' projection reads the values of all heads together and is learned with the model, as is the amount,
which starts at 0, where delta is 1 everywhere. Here the gate is of the head's own values; without one it is their
length |v_j|, which is ours.
Cost: quadratic in length as computed here (scores of all keys, masked); memory linear. While generating, computed from
the cache, as in a whole pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import per_head, visible, wide
from interp.operators.routed.chosen import Choosing, best


@dataclass(frozen=True, eq=False, repr=False)
class DynamicMask(Choosing):
    """Rows keep the keys whose values pass a gate best."""

    keep: int = 64
    """How many keys a row keeps."""
    amount: float = 0.1
    """How strongly the gate counts: the factor inside the exponential."""
    gate: Tensor | None = None
    """[head, dv]; None for the length of a value."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise EditError(f"{self!r}: keep is at least 1.")

    def worth(self, part: Part) -> Tensor:
        """delta [example, head, key]"""
        v = wide(part.values)
        if self.gate is None:
            along = v.norm(dim=-1)
        else:
            along = (v * per_head(self.gate, part, "gate=").to(v)[:, None]).sum(-1)
        found = torch.exp(self.amount * torch.nn.functional.softplus(along))
        if not bool(torch.isfinite(found).all()):
            raise EditError(
                f"{self!r}: exp of what the gate gives overflows (up to {float(along.max()):.3g} before it): use a"
                " smaller amount."
            )
        return found

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        worth = self.worth(part)[:, :, None]
        seen = visible(part, rows).expand(*part.q.shape[:2], -1, -1)
        kept = best(worth.detach().expand(seen.shape), self.keep, seen)
        return part.softmax((part.scores(rows) + worth).masked_fill(~kept, -torch.inf))
