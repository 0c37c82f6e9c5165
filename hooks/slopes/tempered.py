"""Attention whose softmax is differentiated at another temperature, a few rows at a time.

GIM (Edin et al. 2025, arXiv 2505.17630) replaces the softmax's backward pass by that of a flatter one, so that weights
which self-repair holds up are seen: with `s` the scores, `p_T = softmax(s / T)` and `g` the gradient by the weights,
`ds = p_T (g - sum p_T g)`. The value going forward is the model's own. Cost: the attention once more in the backward
pass, in memory linear in the number of keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.stand.call import Call, part_of, row_chunks
from interp.hooks.stand.part import Part

TEMPERATURE = 2.0


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
        total = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
        for rows in row_chunks(ctx.call):
            for sum_, part in zip(total, _rows(ctx.part, q, k, v, dz, rows), strict=True):
                sum_ += part
        return (*(t.to(q.dtype) for t in total), None, None)


def _rows(part: Part, q: Tensor, k: Tensor, v: Tensor, dz: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """What some query rows give to the gradients of q, k and v."""
    with torch.enable_grad():
        q, k = (x.float().requires_grad_() if x.dtype != torch.float64 else x.requires_grad_() for x in (q, k))
        s = replace(part, q=q, k=k).scores(rows)
    g = dz[:, rows].transpose(1, 2).to(s.dtype)
    flat, by_weight = part.softmax(s.detach(), TEMPERATURE), replace(part, v=v).along_values(g)
    ds = flat * (by_weight - (flat * by_weight).sum(-1, keepdim=True))
    dq, dk = torch.autograd.grad(s, (q, k), ds)
    dv = part.softmax(s.detach()).transpose(-1, -2) @ g
    return dq, dk, dv.unflatten(1, (-1, part.group)).sum(2)
