"""Launches of the Triton kernels: the forward, its gradient as an autograd function, and the sweeps."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError
from interp.kernels.gpu.after import untouched
from interp.kernels.gpu.operands import SETS, Part, TritonCall
from interp.kernels.request import Found

OUTPUTS = ("z", "lse", "entropy", "distance", "mass", "max", "argmax", "topk", "topk.keys")
GRADIENTS = OUTPUTS[:5]


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def kernels() -> SimpleNamespace:
    """The kernels; interpreted or compiled is settled by the environment when this is first called."""
    from interp.kernels.gpu import device_backward, device_forward, device_sweep

    return SimpleNamespace(
        forward=device_forward.forward,
        rows_gradient=device_backward.rows_gradient,
        keys_gradient=device_backward.keys_gradient,
        received=device_sweep.received,
        ranked=device_sweep.ranked,
    )


def _launch(name: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Arguments the kernel does not have are left out."""
    kernel = getattr(kernels(), name)
    options = {"num_warps", "num_stages"}
    kernel[grid](**{n: x for n, x in arguments.items() if n in kernel.arg_names or n in options})


def forward(call: TritonCall, part: Part) -> Found:
    """z, log-sum-exp and row statistics of these keys, differentiable where a gradient is wanted."""
    if call.gradient:
        found = _Forward.apply(call.q, call.k, call.v, call.temper, call, part)
        return {n: x for n, x in zip(OUTPUTS, found, strict=True) if x is not None}
    return _forward(call, part)


def _splits(call: TritonCall, tiles: int, block: int) -> int:
    """Enough programs to fill a GPU when rows are few, and no split under 8 blocks of keys."""
    programs = tiles * call.made.batch * call.heads
    if programs >= 256 or call.rows > 16 or call.gradient or call.run_of_keys is None:
        return 1
    return max(1, min(64, 256 // programs, call.made.keys // (8 * block)))


def _forward(call: TritonCall, part: Part) -> Found:
    """With leading axis [split] where the keys were split."""
    made, c = call.made, call.configuration("forward")
    tiles = -(-call.rows // c.rows)
    splits = _splits(call, tiles, c.keys)
    span = -(-made.keys // (splits * c.keys)) * c.keys
    shape = (splits, made.batch, made.heads, len(made.rows))
    final = splits == 1 and not call.gradient and untouched(made)
    out = _outputs(call, shape, call.q.dtype if final else torch.float32)
    names = {"argmax": "AT", "topk": "BEST", "topk.keys": "BEST_AT", "max": "TOP"}
    stats = {names.get(n, n.upper()): call.q if x is None else x for n, x in out.items()}
    flags = {
        "VALUES": made.v is not None,
        "STATS": out["entropy"] is not None,
        "FAR": out["distance"] is not None,
        "TOPK": call.topk,
    }
    arguments = call.arguments(part, c) | stats | flags | {"span": span}
    _launch("forward", (tiles, made.batch * call.heads, splits), arguments)
    found = {n: x if splits > 1 else x[0] for n, x in out.items() if x is not None}
    return found | {n: found[n].long() for n in ("argmax", "topk.keys") if n in found}


def _outputs(call: TritonCall, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor | None]:
    made = call.made

    def new(wanted: bool, *more: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(*shape, *more, dtype=dtype, device=call.q.device) if wanted else None

    rowwise = made.wants("entropy", "max", "argmax")
    return {
        "z": new(made.v is not None, call.v.shape[-1], dtype=dtype), "lse": new(True), "entropy": new(rowwise),
        "distance": new(made.wants("distance")), "mass": new(call.sets is not None, SETS), "max": new(rowwise),
        "argmax": new(rowwise, dtype=torch.int32), "topk": new(call.topk > 0, call.topk),
        "topk.keys": new(call.topk > 0, call.topk, dtype=torch.int32),
    }  # fmt: skip


class _Forward(torch.autograd.Function):
    """Gradients of q, k, v and 1 / temperature from those of z, lse, entropy, distance and masses."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, temper: Tensor | None, call: TritonCall, part: Part
    ) -> tuple[Tensor | None, ...]:
        found = _forward(call, part)
        ctx.call, ctx.part = call, part
        ctx.names = [n for n in GRADIENTS if n in found]
        ctx.save_for_backward(*(found[n] for n in ctx.names))
        ctx.set_materialize_grads(False)
        out = tuple(found.get(n) for n in OUTPUTS)
        ctx.mark_non_differentiable(*(x for x in out[5:] if x is not None))
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise AttentionError("fused attention has no second derivative (create_graph=True); use impl='rows'")
        found = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        grads = {n: g for n, g in zip(OUTPUTS, given, strict=True) if g is not None}
        dq, dk, dv, dtemper = _backward(ctx.call, ctx.part, found, grads)
        return dq, dk, dv, dtemper, None, None


def _backward(call: TritonCall, part: Part, found: Found, grads: Found) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    made, c = call.made, call.configuration("backward")
    given = _rows_given(call, found, grads) | {
        "STATS": "entropy" in grads, "FAR": "distance" in grads, "N_SETS": call.n_sets if "mass" in grads else 0
    }  # fmt: skip
    dq = torch.empty_like(call.q, dtype=torch.float32)
    dk, dv = (torch.empty_like(x, dtype=torch.float32) for x in (call.k, call.v))
    dtemper = None if call.temper is None else torch.zeros_like(call.temper)
    rows = call.arguments(part, c) | given | {"DQ": dq, "DTEMPER": dq if dtemper is None else dtemper}
    _launch("rows_gradient", (-(-call.rows // c.rows), made.batch * made.heads), rows)
    keys = call.arguments(part, c, by_keys=True) | given | {"DK": dk, "DV_": dv}
    _launch("keys_gradient", (-(-made.keys // c.keys), made.batch * call.k.shape[1]), keys)
    return dq.to(call.q.dtype), dk.to(call.k.dtype), dv.to(call.v.dtype), dtemper


def _rows_given(call: TritonCall, found: Found, grads: Found) -> dict[str, Any]:
    """Per row: log-sum-exp, the gradients of what was computed, and delta, what they have in common."""
    lse = found["lse"]
    sees = lse > -torch.inf
    delta = -grads["lse"] if "lse" in grads else torch.zeros_like(lse)
    for n in grads:
        if n != "lse":
            delta = delta + (grads[n] * found[n]).reshape(*lse.shape, -1).sum(-1)
    given = {"LSE": torch.where(sees, lse, 0.0), "DELTA": torch.where(sees, delta, 0.0)}
    given["DZ"] = grads["z"] if "z" in grads else lse.new_zeros(*lse.shape, call.v.shape[-1])
    given |= {"D" + n.upper(): grads.get(n, delta) for n in ("entropy", "distance", "mass")}
    return {n: x.contiguous() for n, x in given.items()}


def received(call: TritonCall, given: dict[str, Any]) -> Found:
    """What each key receives, and how many rows see it."""
    call = replace(call, pack=False)
    made, c = call.made, call.configuration("sweep")
    found = torch.empty(made.batch, made.heads, made.keys, device=call.q.device)
    seen = torch.empty(found.shape, dtype=torch.int32, device=call.q.device)
    arguments = call.arguments(Part(), c, by_keys=True) | given | {"RECEIVED": found, "SEEN": seen}
    _launch("received", (-(-made.keys // c.keys), made.batch * made.heads), arguments)
    return {"received": found, "seen": seen.long()}


def ranked(call: TritonCall, given: dict[str, Any]) -> Found:
    """Entropy, maximum and top-k of final weights."""
    call = replace(call, pack=False)
    made, c = call.made, call.configuration("sweep")
    entropy = torch.empty(made.batch, made.heads, len(made.rows), device=call.q.device)
    k = max(call.topk, 2)
    best = torch.empty(*entropy.shape, k, device=entropy.device)
    at = torch.empty(best.shape, dtype=torch.int32, device=entropy.device)
    out = {"ENTROPY": entropy, "BEST": best, "BEST_AT": at, "TOPK": k}
    _launch("ranked", (-(-len(made.rows) // c.rows), made.batch * made.heads), call.arguments(Part(), c) | given | out)
    keys = at.long()
    return {"entropy": entropy, "max": best[..., 0], "argmax": keys[..., 0], "topk": best, "topk.keys": keys}
