"""RALA: linear attention whose keys are weighed, so that the sum that all rows read has a higher rank.

Fan et al. 2024 (arXiv 2411.07635), as the authors' code computes it, with phi = elu + 1 and g = mean_i phi(q_i):

    alpha_j = softmax_j(scale g.phi(k_j)),   A_ij = alpha_j phi(q_i).phi(k_j) / sum_j alpha_j phi(q_i).phi(k_j)

The mean is over the rows that are no padding. Where a tower hides later keys g would see them; there g_j is the mean
over the queries up to j, which is ours. That code rotates q and k in the sum and not in its normaliser, since it has
them both ways; here both have them as the model's call has. The paper's block multiplies the output by a projection of
the layer's input, which is not part of a head and is not here.
Cost: linear in length in time and memory. Not while generating: queries before the current one are not in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import (
    Operator,
    alive,
    looks_ahead,
    ratio,
    real_queries,
    rows_asked,
    shares,
    visible,
    wide,
)
from interp.operators.linear.features import elu
from interp.operators.linear.streams import summed


@dataclass(frozen=True, eq=False, repr=False)
class RankAugmented(Operator):
    """RALA: linear attention by elu + 1 with weighed keys."""

    whole = True
    scoreless = True
    fast = True

    def z(self, part: Part) -> Tensor:
        self.refuse_additions(part)
        weight = self.key_weights(part)[..., None]
        v = wide(part.values)
        u = torch.cat([v, torch.ones_like(v[..., :1])], -1) * weight
        y = summed(part, elu, elu, u)
        return ratio(y[..., :-1], y[..., -1:])

    def pattern(self, part: Part) -> Tensor:
        """Weights; rows sum to 1."""
        self.refuse_additions(part)
        rows = rows_asked(part)
        a = elu(wide(part.q[:, :, rows])) @ elu(wide(part.keys)).transpose(-1, -2)
        return shares(a * self.key_weights(part)[:, :, None], visible(part, rows))

    def state(self, part: Part) -> Tensor:
        """sum_j alpha_j phi(k_j) v_j^T [example, head, d, dv]"""
        return (elu(wide(part.keys)) * self.key_weights(part)[..., None]).transpose(-1, -2) @ wide(part.values)

    def products(self, part: Part) -> float:
        """Each key into the sum and each query against it."""
        return float(part.q.shape[2] + part.k.shape[2]) * part.q.shape[-1] * (part.v.shape[-1] + 1)

    def key_weights(self, part: Part) -> Tensor:
        """alpha [example, head, key], up to a factor of a head."""
        fq, fk = elu(wide(part.q)), elu(wide(part.keys))
        real = real_queries(part)[..., None].expand(*fq.shape[:3], 1)
        fq = fq * real
        if part.q.shape[2] != part.k.shape[2] or looks_ahead(part):
            g = ratio(fq.sum(2, keepdim=True), real.sum(2, keepdim=True).to(fq))
        else:
            g = ratio(fq.cumsum(2), real.cumsum(2).to(fq))
        s = part.scale * (g * fk).sum(-1)
        s = s.masked_fill(~alive(part), -torch.inf)
        top = s.detach().amax(-1, keepdim=True)
        if bool(top.isposinf().any()):
            raise EditError(f"{self!r}: a key's weight overflows; q and k are too large for elu + 1.")
        return torch.exp(s - top.masked_fill(top.isneginf(), 0.0))
