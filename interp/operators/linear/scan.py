"""Attention as a scan over keys: what a row reads grows key by key, and all rows come out of one pass.

Feng et al. 2024, "Attention as an RNN" (arXiv 2405.13956): with s_j = scale q.k_j of one query q, the triples
(m, u, w) = (s_j, 1, v_j) are joined by

    (m, u, w) + (m', u', w') = (M, u e^(m-M) + u' e^(m'-M), w e^(m-M) + w' e^(m'-M)),     M = max(m, m')

which is associative, so that a prefix scan gives w / u of every prefix, that is softmax attention of q over the keys
up to each row, in log2(keys) rounds. Their model (Aaren) learns one query for all positions. Here it is `query`; None
takes the mean of the head's own queries over the rows that are no padding. It needs a head whose keys have no position
in them (rotations) to mean the same thing everywhere; on others it is a constant query. Cost: linear in length in
memory, length times log2 of it in time. Towers where each row sees the real keys up to some end, which causal and full
ones are; windows are refused. While generating, the triple of all keys so far is a state that each step joins one key
to; not unless `query` is given: the mean would be over the current row alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import (
    Operator,
    alive,
    blocks,
    per_head,
    ratio,
    real_queries,
    runs_of,
    softmax,
    visible,
    wide,
)

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class PrefixScan(Operator):
    """One query for all rows, each of which reads the keys that it sees, by a prefix scan."""

    scoreless = True
    fast = True

    query: Tensor | None = None
    """[head, d]; None for the mean of the head's own queries."""

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """A mean is over all rows."""
        return self.query is None

    def z(self, part: Part) -> Tensor:
        self.refuse_additions(part)
        ends = self._ends(part)
        s = self._scores(part).masked_fill(~alive(part), -torch.inf)
        _, u, w = scanned(s, wide(part.values))
        z = ratio(w, u[..., None])
        at = (ends - 1).clamp(min=0).expand(*part.q.shape[:3])[..., None].expand(-1, -1, -1, z.shape[-1])
        return z.gather(2, at) * (ends > 0)[..., None]

    def start(self, part: Part) -> Triple:
        """(m, u, w) of the keys that a query sees."""
        self.refuse_additions(part)
        s = self._scores(part).masked_fill(~alive(part), -torch.inf)
        m = s.amax(-1, keepdim=True)
        weights = torch.exp(s - m.masked_fill(m.isneginf(), 0.0))
        return m, weights.sum(-1, keepdim=True), (weights[:, :, None] @ wide(part.values))[:, :, 0]

    def grow(self, state: Triple, part: Part) -> Triple:
        """The triple with one more key."""
        s = self._scores(part)
        return joined(state, (s, torch.ones_like(s), wide(part.values)[:, :, 0]))

    def answer(self, state: Triple, part: Part) -> Tensor:
        """z, from the triple alone."""
        self.refuse_additions(part)
        return ratio(state[2], state[1])[:, :, None]

    def products(self, part: Part) -> float:
        """Each key against the one query, and two triples joined at each key in every round."""
        keys, dv = part.k.shape[2], part.v.shape[-1]
        return float(keys) * (part.q.shape[-1] + 2 * (dv + 1) * math.ceil(math.log2(max(2, keys))))

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        self.refuse_additions(part)
        return softmax(self._scores(part)[:, :, None].expand(-1, -1, len(rows), -1), visible(part, rows))

    def _scores(self, part: Part) -> Tensor:
        """[example, head, key]"""
        if self.query is None:
            real = real_queries(part)[..., None].to(wide(part.q))
            q = ratio((wide(part.q) * real).sum(2), real.sum(2))
        else:
            q = per_head(self.query, part, "query=").to(wide(part.q))[None]
        return (wide(part.keys) * q[:, :, None]).sum(-1) * part.scale

    def _ends(self, part: Part) -> Tensor:
        """[example or 1, head or 1, query]: the key after the last one that a row sees."""
        runs = runs_of(part)
        if runs is not None:
            low, high = runs
            before = torch.nn.functional.pad(alive(part)[:, 0].long().cumsum(-1), (1, 0))
            if bool((before.expand(low.shape[0], -1).gather(1, low)[high > low] > 0).any()):
                self._refuse_gaps(part)
            return torch.where(high > low, high, 0)[:, None]
        return torch.cat([self._ends_of(part, rows) for rows in blocks(part)], -1)

    def _ends_of(self, part: Part, rows: Tensor) -> Tensor:
        seen, keys = visible(part, rows), torch.arange(part.k.shape[2], device=part.q.device)
        end = ((keys + 1) * seen).amax(-1)
        if not bool((seen == (alive(part)[:, :, None] & (keys < end[..., None]))).all()):
            self._refuse_gaps(part)
        return end

    def _refuse_gaps(self, part: Part) -> None:
        raise EditError(
            f"{self!r}: a row of heads {list(part.heads)} leaves out keys before its last one (windows, images apart),"
            " and a scan reads all of them: use StaticQK there."
        )


def joined(one: Triple, other: Triple) -> Triple:
    """(m, u, w) of two runs of keys together: m and u [..., 1], w [..., d]."""
    top = torch.maximum(one[0], other[0])
    base = top.masked_fill(top.isneginf(), 0.0)
    first, second = (torch.exp(m - base) for m in (one[0], other[0]))
    return top, one[1] * first + other[1] * second, one[2] * first + other[2] * second


def scanned(s: Tensor, v: Tensor) -> Triple:
    """(m, u, w) of every prefix: scores [..., key] and values [..., key, d]; m = -inf and u = 0 before the first key
    that is no -inf."""
    m, u, w = s, torch.ones_like(s).masked_fill(s.isneginf(), 0.0), v.masked_fill(s.isneginf()[..., None], 0.0)
    m, u = m[..., None], u[..., None]
    step = 1
    while step < s.shape[-1]:
        after, before = slice(step, None), slice(None, -step)
        new = joined((m[..., after, :], u[..., after, :], w[..., after, :]),
                     (m[..., before, :], u[..., before, :], w[..., before, :]))  # fmt: skip
        m, u, w = (torch.cat([x[..., :step, :], y], -2) for x, y in zip((m, u, w), new, strict=True))
        step *= 2
    return m[..., 0], u[..., 0], w
