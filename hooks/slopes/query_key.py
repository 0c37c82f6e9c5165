"""What patching q or k does to the answer, to first order in the pattern and exactly in the softmax (AtP*).

The softmax is where a gradient at q or k says least: saturated, it is 0 however much the pattern would move. So the
pattern is recomputed exactly and the gradient taken behind it (Kramar et al. 2024, arXiv 2403.00745). With `a` the
weights of a row, `g_t = v_t . dz` their gradients and `a'` the weights with the new q or k:

    query   sum_t (a'_t - a_t) g_t = (z' - z) . dz, one more call of the model's own attention for all rows
    key t   only the score of key t changes, by d, in every row that sees it: with L = logit(a_t),
            (sigmoid(L + d) - sigmoid(L)) (g_t - mean of the other g under the row's other weights)

The second is the textbook's sum over a recomputed row in closed form, rows * keys instead of rows * keys^2; it is
computed so that weights of 1 in float32 lose nothing. A few rows at a time; grouped keys sum over their queries' heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interp.hooks.stand.call import Call, part_of, row_chunks


def query_effect(call: Call, q: Tensor, dz: Tensor) -> Tensor:
    """[batch, position, head]: each row's own query replaced by that of q [batch, position, head, d]."""
    call.refuse_programs(range(call.q.shape[1]))
    with torch.no_grad():
        plain = replace(call, q=call.q.detach(), k=call.k.detach(), v=call.v.detach())
        other = replace(plain, q=q.transpose(1, 2).to(call.q.dtype))
        plain.attend()
        other.attend()
        wide = torch.promote_types(call.q.dtype, torch.float32)
        return ((other.z.to(wide) - plain.z.to(wide)) * dz.to(wide)).sum(-1)


def key_effect(call: Call, k: Tensor, dz: Tensor) -> Tensor:
    """[batch, position, kv head]: each position's own key replaced by that of k [batch, position, kv head, d]."""
    with torch.no_grad():
        heads = tuple(range(call.q.shape[1]))
        plain = replace(call, q=call.q.detach(), k=call.k.detach(), v=call.v.detach())
        old = part_of(plain, heads)
        new = part_of(replace(plain, k=k.transpose(1, 2).to(call.k.dtype)), heads)
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        total = torch.zeros(*call.q.shape[:2], call.k.shape[2], dtype=dtype, device=call.q.device)
        sinks = None if old.sinks is None else old.sinks.to(total)
        for rows in row_chunks(call):
            g = old.along_values(dz[:, rows].transpose(1, 2).to(total))
            before, after = (part.scores(rows).to(total) for part in (old, new))
            total += _moved(before, after, g, sinks).sum(2)
        group = call.q.shape[1] // call.k.shape[1]
        return total.unflatten(1, (-1, group)).sum(2).transpose(1, 2)


def _moved(s: Tensor, new: Tensor, g: Tensor, sinks: Tensor | None) -> Tensor:
    """[b, head, row, key]: the effect in each row of changing the score of each key alone, from s to new."""
    if sinks is not None:  # the learned sink is one more key, whose value is nothing
        own = sinks[None, :, None, None].expand(*s.shape[:3], 1)
        s, new, g = torch.cat([s, own], -1), torch.cat([new, own], -1), torch.nn.functional.pad(g, (0, 1))
    seen = ~s.isneginf()
    s, new = s.masked_fill(~seen, -1e30), new.masked_fill(~seen, -1e30)
    rest, others = _without(s, g)
    odds, step = s - rest, new - s
    up = -torch.expm1(-step.clamp(min=0)) * torch.sigmoid(odds + step) * torch.sigmoid(-odds)
    down = torch.expm1(step.clamp(max=0)) * torch.sigmoid(odds) * torch.sigmoid(-odds - step)
    moved = torch.where(step >= 0, up, down) * (g - others)
    found = moved.masked_fill(~seen, 0.0)
    return found if sinks is None else found[..., :-1]


def _without(s: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """For each key the log-sum-exp of the other keys' scores, and the mean of g under their weights.

    A weight of at most one half is taken off the row's sums; the one that may be larger is left out of a second sum.
    """
    total, best = s.logsumexp(-1, keepdim=True), s.argmax(-1, keepdim=True)
    a = (s - total).exp()
    left = torch.log1p(-a.clamp(max=0.5)) + total
    mean = ((a * g).sum(-1, keepdim=True) - a * g) / (1 - a.clamp(max=0.5))
    apart = s.scatter(-1, best, -1e30)
    alone = apart.logsumexp(-1, keepdim=True)
    weights = (apart - alone).exp()
    return left.scatter(-1, best, alone), mean.scatter(-1, best, (weights * g).sum(-1, keepdim=True))
