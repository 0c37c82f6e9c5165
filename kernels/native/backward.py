"""The C++ library as a differentiable operation: scores are computed again in the backward pass, which keeps q, k, v,
the log-sum-exp and the keys of the largest weights, nothing of rows times keys. No second derivative.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError
from interp.kernels.native import library as C
from interp.kernels.native.forward import forward
from interp.kernels.native.marshal import FIELDS, Run, Shared, done, prepared, runs, segments
from interp.kernels.request import Found, Request

WHOLE = ("argmax", "topk_keys", "seen", "blind", "unmoved")
"""Outputs that are whole numbers and have no gradient."""


def differentiable(made: Request, q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None) -> Found:
    """As `forward`, with a gradient to q, k, v and sinks."""
    names: list[str] = []
    found = _Attend.apply(q, k, v, sinks, made, names)
    return dict(zip(names, found, strict=True))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None, made: Request, names: list[str]
    ) -> tuple[Tensor, ...]:
        found = forward(Shared(made, q, k, v, sinks))
        names.extend(found)
        ctx.save_for_backward(q, k, v, sinks, found["_lse"], found.get("topk_keys"))
        ctx.made, ctx.names = made, tuple(found)
        ctx.mark_non_differentiable(*(x for n, x in found.items() if n in WHOLE))
        ctx.set_materialize_grads(False)
        return tuple(found.values())

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise AttentionError("native attention has no second derivative (create_graph=True); use impl='rows'")
        q, k, v, sinks, lse, topk_keys = ctx.saved_tensors
        grads = {n: x.float() for n, x in zip(ctx.names, given, strict=True) if x is not None and n not in WHOLE}
        shared = Shared(ctx.made, q, k, v, sinks)
        found = _Gradients.like(shared)
        for run in runs(ctx.made):
            _run(shared, run, grads, lse, topk_keys, found)
        return (*found.summed(), None, None)


@dataclass(frozen=True, eq=False)
class _Gradients:
    """q [batch, head, row, d]; the others with an axis of segments in front, added to."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    sinks: Tensor | None

    @classmethod
    def like(cls, shared: Shared) -> _Gradients:
        few = shared.k.shape[0] * shared.k.shape[1] < 8
        parts = segments(shared.q.shape[2]) if few else 1
        v = None if shared.v is None else torch.zeros(parts, *shared.v.shape)
        sinks = None if shared.sinks is None else torch.zeros(parts, *shared.q.shape[:2])
        return cls(torch.zeros(shared.q.shape), torch.zeros(parts, *shared.k.shape), v, sinks)

    def summed(self) -> tuple[Tensor | None, ...]:
        v = None if self.v is None else self.v.sum(0)
        return self.q, self.k.sum(0), v, None if self.sinks is None else self.sinks.sum((0, 1))


def _run(shared: Shared, run: Run, grads: Found, lse: Tensor, topk_keys: Tensor | None, found: _Gradients) -> None:
    ready, back = prepared(shared, run), C.BackStruct()
    ready.give("lse", lse[:, :, run.at])
    ready.give("topk_keys", None if topk_keys is None else topk_keys[:, :, run.at])
    for name, x in grads.items():
        mine = x if name == "received" else x[:, :, :, run.at] if name == "mass" else x[:, :, run.at]
        ready.give("d" + FIELDS.get(name, name), mine, to=back)
    dq = torch.empty_like(found.q[:, :, run.at], memory_format=torch.contiguous_format)
    back.dq, back.dk, back.segments = dq.data_ptr(), found.k.data_ptr(), len(found.k)
    back.dv = None if found.v is None else found.v.data_ptr()
    back.dsinks = None if found.sinks is None else found.sinks.data_ptr()
    function = C.library().gradient
    assert function is not None
    done(shared.made, function(ctypes.byref(ready.call), ctypes.byref(back)))
    found.q[:, :, run.at] = dq
