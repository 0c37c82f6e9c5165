"""InLine attention: linear attention whose rows sum to 1 and whose weights may be negative.

Han et al. 2024 (arXiv 2412.06590), as the authors' code computes it, for every visible key j of row i, n_i of them:

    A_ij = scale q_i.k_j / n_i + (1 - scale q_i.k_i') / n_i,        k_i' = mean of the visible k_j

so that two rows attend alike only where their queries agree on span(k - k'). That code sees all keys and has no mask;
means over what a row sees, for causal towers, are ours. The paper's block adds a learned local residual to it, which
is not part of a head and is not here.
Cost: linear in length in time and memory. While generating it goes on from how many keys there are, the means of k and
v, and sum_j (k_j - k')(v_j - v')^T, which grow key by key (Welford) and lose nothing in rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, alive, ratio, visible, wide
from interp.operators.linear.streams import shared, summed


@dataclass(frozen=True)
class Moments:
    """What rows read of the keys and values so far, [example, kv head or head, ...]."""

    n: Tensor
    """How many keys there are."""
    k: Tensor
    """Their mean."""
    v: Tensor
    """The mean of their values."""
    kv: Tensor
    """sum_j (k_j - mean)(v_j - mean)^T"""


@dataclass(frozen=True, eq=False, repr=False)
class InLine(Operator):
    """Injective linear attention: rows sum to 1, weights may be negative."""

    scoreless = True
    fast = True

    def z(self, part: Part) -> Tensor:
        self.refuse_additions(part)
        v, center = wide(part.v), _center(part)
        counted = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        along = summed(part, lambda q: q * part.scale, lambda k: k - center, counted)
        every = summed(part, lambda q: torch.ones_like(q[..., :1]), lambda k: torch.ones_like(k[..., :1]), counted)
        n = every[..., -1:]
        return ratio(along[..., :-1] + every[..., :-1] * (1 - ratio(along[..., -1:], n)), n)

    def start(self, part: Part) -> Moments:
        """The state of the keys that a query sees."""
        self.refuse_additions(part)
        some = alive(part)[..., None].to(wide(part.k))
        k, v = (x if some.shape[1] == 1 else x.repeat_interleave(part.group, 1) for x in map(wide, (part.k, part.v)))
        n = some.sum(2, keepdim=True)
        mean_k, mean_v = (ratio((x * some).sum(2, keepdim=True), n) for x in (k, v))
        return Moments(n, mean_k, mean_v, ((k - mean_k) * some).transpose(-1, -2) @ (v - mean_v))

    def grow(self, state: Moments, part: Part) -> Moments:
        """The state with one more key."""
        group = state.k.shape[1] // part.k.shape[1]
        k, v = (wide(x).repeat_interleave(group, 1) for x in (part.k, part.v))
        n, gap = state.n + 1, k - state.k
        mean_v = state.v + (v - state.v) / n
        return Moments(n, state.k + gap / n, mean_v, state.kv + gap.transpose(-1, -2) @ (v - mean_v))

    def answer(self, state: Moments, part: Part) -> Tensor:
        """z of a query, from the state alone."""
        self.refuse_additions(part)
        along = shared(wide(part.q) * part.scale, ratio(state.kv, state.n))
        return along + state.v.repeat_interleave(along.shape[1] // state.v.shape[1], 1)

    def state(self, part: Part) -> Tensor:
        """sum_j k_j v_j^T [example, head, d, dv]"""
        return (wide(part.keys) * alive(part)[..., None]).transpose(-1, -2) @ wide(part.values)

    def products(self, part: Part) -> float:
        """Each key into the sum and each query against it."""
        return float(part.q.shape[2] + part.k.shape[2]) * part.q.shape[-1] * (part.v.shape[-1] + 1)

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        self.refuse_additions(part)
        keys = wide(part.keys) - _center(part).repeat_interleave(part.group, 1)
        along = (wide(part.q[:, :, rows]) * part.scale @ keys.transpose(-1, -2)).masked_fill(~visible(part, rows), 0.0)
        n = visible(part, rows).sum(-1, keepdim=True).to(along)
        a = ratio(along + 1 - ratio(along.sum(-1, keepdim=True), n), n.expand_as(along))
        return a.masked_fill(~visible(part, rows), 0.0)


def _center(part: Part) -> Tensor:
    """The mean of a head's keys, which may be taken off them all without a change of A: less is lost in rounding."""
    return wide(part.k).detach().mean(2, keepdim=True)
