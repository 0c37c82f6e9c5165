"""Landmark attention: a landmark represents each block of keys, and weight reaches a key through its block's landmark.

Mohtashami and Jaggi 2023 (arXiv 2305.16300). In its own block a row reads keys by their scores; what it gives to
another block it gives to the block's landmark, and shares it within the block by the softmax there. With block scores
b_c of the other blocks and w the softmax over the own block's keys and the landmarks together,

    A_ij = w_j for j in the own block,     A_ij = w_c exp(s_ij) / sum of exp(s_ij') over block c otherwise

and rows sum to 1. With `keep`, a row reads only the blocks of the `keep` largest landmark scores, as the paper does in
inference, head by head and row by row. There a landmark is a token that the model was trained with. In a head without,
`landmark="mean"` gives it the mean of the block's keys, which is ours; `"exact"` gives it the log of the sum of exp of
the block's scores, which makes the two steps one softmax, so that without `keep` it is dense attention, and with it
the best that landmarks could choose.
Cost: quadratic in length as computed here; memory linear. While generating, computed from the cache, as in a whole
pass, but that a block's mean is over the keys so far: in whole passes too, a row's view of a block is of the keys it
sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, softmax, visible, wide
from interp.operators.routed.chosen import best


@dataclass(frozen=True, eq=False, repr=False)
class Landmarks(Operator):
    """Weight reaches the keys of other blocks through their landmarks."""

    ordered = True

    block: int = 50
    """How many keys a block has."""
    keep: int | None = None
    """Other blocks that a row reads; None for all."""
    landmark: str = "mean"
    """What a landmark is: "mean" of the block's keys, or "exact" for the log of the sum of exp of its scores."""

    def __post_init__(self) -> None:
        if self.block < 1 or (self.keep is not None and self.keep < 1) or self.landmark not in ("mean", "exact"):
            raise EditError(f"{self!r}: block and keep are at least 1, landmark is 'mean' or 'exact'.")

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        if part.sinks is not None:
            raise EditError(f"{self!r}: a learned sink is in no block: use another layer.")
        seen = visible(part, rows).expand(*part.q.shape[:2], -1, -1)
        keys = part.k.shape[2]
        block = torch.arange(keys, device=seen.device) // self.block
        own = (self.places(part)[rows] // self.block)[:, None] == block
        s = part.scores(rows).masked_fill(~seen, -torch.inf)
        marks = self._marks(part, rows, s, seen)
        others = torch.nn.functional.one_hot(self.places(part)[rows] // self.block, marks.shape[-1]) == 0
        marks = marks.masked_fill(~others, -torch.inf)
        if self.keep is not None:
            marks = marks.masked_fill(~best(marks.detach(), self.keep, ~marks.isneginf()), -torch.inf)
        w = torch.cat([s.masked_fill(~own, -torch.inf), marks], -1)
        w = softmax(w, ~w.isneginf())
        within = _within(s, seen, self.block)
        return torch.where(own, w[..., :keys], within * w[..., keys:][..., block])

    def _marks(self, part: Part, rows: Tensor, s: Tensor, seen: Tensor) -> Tensor:
        """[example, head, row, block]: what a row's query gives to each landmark; -inf where it sees no key of it."""
        if self.landmark == "exact":
            return _blocks(s, self.block, -torch.inf).logsumexp(-1)
        member = _blocks(seen, self.block, False)
        q, k = wide(part.q[:, :, rows]), torch.nn.functional.pad(wide(part.keys), (0, 0, 0, -s.shape[-1] % self.block))
        along = _blocks(q @ k.transpose(-1, -2) * part.scale, self.block, 0.0).masked_fill(~member, 0.0)
        count = member.sum(-1)
        return (along.sum(-1) / count.clamp(min=1)).masked_fill(count == 0, -torch.inf)


def _blocks(x: Tensor, size: int, fill: float | bool) -> Tensor:
    """[..., block, key of it], padded to whole blocks."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % size), value=fill).unflatten(-1, (-1, size))


def _within(s: Tensor, seen: Tensor, size: int) -> Tensor:
    """Softmax within each block [..., key]."""
    return softmax(_blocks(s, size, -torch.inf), _blocks(seen, size, False)).flatten(-2)[..., : s.shape[-1]]
