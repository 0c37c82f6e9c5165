"""Heads of a denoiser that look at themselves: attention blended with the identity, as far as words allow it.

SoftPAG (arXiv 2506.10978) takes A_h to (1 - u) A_h + u I for some heads h. Where a sequence holds the words as well,
identity is what diffusers' perturbed attention means by it: a cell of the picture attends to itself and to the words,

    z_i <- (1 - u) z_i + u sum_{j in {i} and words} softmax_j(s_ij) v_j        for cells i,

and words attend as in the model. Where there are no words among the keys the sum is v_i. Nothing of size N x N is made:
the second softmax is over the words and the own key. The paper's u is not known; here it is given. Learned registers
(AuraFlow's) count as cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.edits.edits import AtHeads, AttentionEdit, Place
from interp.hooks.errors import EditError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.stand.call import Call
from interp.hooks.stand.part import Part
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import as_mask


@dataclass(frozen=True, eq=False, repr=False)
class SoftIdentity(AttentionEdit):
    """Blend heads' rows with looking at the own key and at `keep` alone, by `amount`; rows of `keep` stay as they are.

    `SoftIdentity("L3.H1", 1.0)` is perturbed attention of one head. With `keep=None` it is the identity itself.
    """

    by_head = True

    amount: float = 1.0
    """The part of the pattern that is replaced, 0 to 1."""
    keep: Positions | None = "text"
    """Tokens that every row still sees, and whose own rows stay as they are; None for no such tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise EditError(f"{self!r}: amount is how much of the pattern is replaced, from 0 to 1.")

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        queries, keys = call.q.shape[2], call.k.shape[2]
        if queries != keys:
            raise EditError(
                f"{self!r}: a token can look at itself in self-attention only, and here are {queries} queries and"
                f" {keys} keys."
            )
        if self.amount == 0:
            return []
        kept = torch.zeros(len(call.q), keys, dtype=torch.bool, device=call.q.device)
        if self.keep is not None:
            kept = place.keys(self.keep)
        return [(place.heads, OwnKey(self.amount, kept))]


@dataclass(frozen=True, eq=False)
class OwnKey:
    """The program: (1 - amount) times the model's own softmax, and amount times one over the own key and kept ones."""

    amount: float
    kept: Tensor
    """Bool [example, key]."""

    def z(self, part: Part) -> Tensor:
        own = attend(part.q, part.k, part.v, **part.arguments).z
        assert own is not None
        columns, weights = self._weights(part)
        alone = weights[..., :1] * part.values.to(weights.dtype)
        alone = alone + weights[..., 1:] @ part.values[:, :, columns].to(weights.dtype)
        blended = (1 - self.amount) * own.to(weights.dtype) + self.amount * alone
        return torch.where(self.kept[:, None, :, None], own, blended.to(own.dtype))

    def pattern(self, part: Part) -> Tensor:
        queries = part.q.shape[2]
        rows = torch.arange(queries, device=part.q.device) if part.rows is None else part.rows
        own = part.softmax(part.scores(rows))
        columns, weights = self._weights(part)
        alone = torch.zeros_like(own)
        alone[..., columns] = weights[:, :, rows, 1:].to(own.dtype)
        alone.scatter_add_(3, rows.view(1, 1, -1, 1).expand(*own.shape[:3], 1), weights[:, :, rows, :1].to(own.dtype))
        blended = (1 - self.amount) * own + self.amount * alone
        return torch.where(self.kept[:, None, rows, None], own, blended)

    def _weights(self, part: Part) -> tuple[Tensor, Tensor]:
        """The kept keys' columns, and [example, head, query, 1 + kept]: the weight of the own key, then of these."""
        if part.sinks is not None or part.softcap is not None or part.bias is not None:
            raise EditError("looking at the own key is defined for plain attention: no sinks, soft cap or bias.")
        columns = self.kept.any(0).nonzero().flatten()
        wide = torch.promote_types(part.q.dtype, torch.float32)
        q, k = part.q.to(wide), part.keys.to(wide)
        own = (q * k).sum(-1, keepdim=True) * part.scale
        kept = q @ k[:, :, columns].mT * part.scale
        rows = torch.arange(q.shape[2], device=q.device)
        mask = as_mask(part.mask)
        seen = mask.visible(rows, columns) & self.kept[:, None, None, columns]
        if (added := mask.additive(rows, columns)) is not None:
            kept = kept + added
        scores = torch.cat([own, kept.masked_fill(~seen, -torch.inf)], -1)
        return columns, scores.softmax(-1)
