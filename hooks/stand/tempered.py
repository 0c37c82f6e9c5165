"""Attention whose softmax is differentiated at another temperature, a few rows at a time.

GIM (Edin et al. 2025, arXiv 2505.17630) replaces the softmax's backward pass by that of a flatter one, so that weights
which self-repair holds up are seen: with `s` the scores, `p_T = softmax(s / T)` and `g` the gradient by the weights,
`ds = p_T (g - sum p_T g)`. The value going forward is the model's own. Cost: the attention once more in the backward
pass, in memory linear in the number of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interp.hooks.stand.attention import Part, part_of
from interp.hooks.stand.interface import Call
from interp.kernels.cpu.tiles import scores

TEMPERATURE = 2.0
NUMBERS = 2**22
"""Numbers of a pattern that are in memory together."""


def row_chunks(call: Call) -> Iterator[Tensor]:
    """Query rows of a call, so many together that their patterns fit."""
    batch, heads, queries, _ = call.q.shape
    step = max(1, NUMBERS // max(1, batch * heads * call.k.shape[2]))
    yield from torch.arange(queries, device=call.q.device).split(step)


def softmax(part: Part, s: Tensor, temperature: float = 1.0) -> Tensor:
    """Weights of scores [b, head, row, key], with the learned sink's share taken off; rows that see nothing are 0."""
    sinks = part.arguments["sinks"]
    wide = s if sinks is None else torch.cat([s, sinks.to(s)[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    blind = wide.isneginf().all(-1, keepdim=True)
    return torch.softmax(wide / temperature, -1).masked_fill(blind, 0.0)[..., : s.shape[-1]]


def scores_of(part: Part, rows: Tensor) -> Tensor:
    """The scores of some rows, float32 or better, -inf where hidden."""
    arguments = {name: value for name, value in part.arguments.items() if name != "sinks"}
    return scores(part.q, part.k, rows=rows, **arguments)


def tempered(call: Call) -> None:
    """Attend as the model does; the gradient is that of the tempered softmax."""
    with torch.no_grad():
        call.attend()
    call.z = _Tempered.apply(call.q, call.k, call.v, call.z, call)


class _Tempered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, z: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.part = part_of(call, tuple(range(q.shape[1])))
        ctx.call = call
        return z.clone()

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = (x.detach() for x in ctx.saved_tensors)
        group = q.shape[1] // k.shape[1]
        total = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
        for rows in row_chunks(ctx.call):
            for sum_, part in zip(total, _rows(ctx.part, q, k, v, dz, rows, group), strict=True):
                sum_ += part
        return (*(t.to(q.dtype) for t in total), None, None)


def _rows(part: Part, q: Tensor, k: Tensor, v: Tensor, dz: Tensor, rows: Tensor, group: int) -> tuple[Tensor, ...]:
    """What some query rows give to the gradients of q, k and v."""
    with torch.enable_grad():
        q, k = (x.float().requires_grad_() if x.dtype != torch.float64 else x.requires_grad_() for x in (q, k))
        s = scores_of(Part(q, k.repeat_interleave(group, 1), part.v, part.arguments), rows)
    g = dz[:, rows].transpose(1, 2).to(s.dtype)
    wide = v.repeat_interleave(group, 1).to(s.dtype)
    flat, by_weight = softmax(part, s.detach(), TEMPERATURE), g @ wide.transpose(-1, -2)
    ds = flat * (by_weight - (flat * by_weight).sum(-1, keepdim=True))
    dq, dk = torch.autograd.grad(s, (q, k), ds)
    dv = softmax(part, s.detach()).transpose(-1, -2) @ g
    return dq, dk, dv.unflatten(1, (-1, group)).sum(2)
