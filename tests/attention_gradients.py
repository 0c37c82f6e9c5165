"""Gradients of attention calls, by any implementation and by the dense reference."""

from __future__ import annotations

from typing import Any

import torch
from attention_calls import build, tolerance
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.cpu import reference
from interp.kernels.request import request

Outputs = dict[str, Tensor]


def leaves(
    q: Tensor, k: Tensor, v: Tensor | None, more: dict[str, Any], dtype: torch.dtype
) -> tuple[Outputs, dict[str, Any]]:
    """Fresh leaves of this dtype, and the arguments of the call made of them."""
    tensors = {"q": q, "k": k, "v": v, "sinks": more["sinks"]}
    made = {n: x.detach().to(dtype).requires_grad_() for n, x in tensors.items() if x is not None}
    arguments = {**more, "sinks": made.get("sinks")}
    if "gate" in more:
        made["gate"] = more["gate"].detach().to(dtype).requires_grad_()
        arguments["edits"] = [*more["edits"], E.Gate(made["gate"])]
        del arguments["gate"]
    return made, arguments


def pulled(outputs: Outputs, made: Outputs, seed: int) -> Outputs:
    """The gradient of all outputs times fixed random numbers."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for x in outputs.values():
        if x.is_floating_point():
            by = torch.randn(x.shape, generator=g, dtype=torch.float64)
            total = total + (x.masked_fill(x.isinf(), 0.0).double() * by).sum()
    found = torch.autograd.grad(total, list(made.values()), allow_unused=True)
    return {n: torch.zeros_like(made[n]) if x is None else x for n, x in zip(made, found, strict=True)}


def by_reference(
    q: Tensor, k: Tensor, v: Tensor | None, more: dict[str, Any], dtype: torch.dtype, seed: int, *, given: torch.dtype
) -> tuple[Outputs, float]:
    """Computed in `dtype`, from leaves and to a z of `given`, through which gradients are rounded."""
    made, arguments = leaves(q, k, v, more, given)
    q, k, v = (x.to(dtype) if x is not None else None for x in (made["q"], made["k"], made.get("v")))
    asked = request(q, k, v, **arguments)
    z, lse, stats, _ = reference.attend(asked, dtype=dtype)
    size = float(reference.edited_scores(asked, dtype)[0].detach().clamp(-1e4, 1e4).abs().amax())
    return pulled({"lse": lse, **stats} | ({} if z is None else {"z": z.to(given)}), made, seed), size


def check(q: Tensor, k: Tensor, v: Tensor | None, more: dict[str, Any], impl: str, seed: int = 7) -> None:
    exact, size = by_reference(q, k, v, more, torch.float64, seed, given=torch.float64)
    low, _ = by_reference(q, k, v, more, torch.float32, seed, given=q.dtype)
    made, arguments = leaves(q, k, v, more, q.dtype)
    out = attention.attend(made["q"], made["k"], made.get("v"), impl=impl, **arguments)
    assert out.impl == impl
    assert (out.z is None) == (v is None)
    found = pulled({"lse": out.lse, **out.stats} | ({} if out.z is None else {"z": out.z}), made, seed)
    for name, x in exact.items():
        assert found[name].dtype == made[name].dtype
        rounding = 0.0 if q.dtype == torch.float32 else float(torch.finfo(q.dtype).eps * x.abs().amax())
        torch.testing.assert_close(
            found[name].double(),
            x,
            rtol=0,
            atol=tolerance(low[name].float(), x, size) + rounding,
            msg=lambda text, n=name: f"gradient of {n}: {text}",
        )


def drawn(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Largest weights of rounded inputs can tie, and a tie has no derivative; a bias has its own test."""
    if call["dtype"] == "float64":
        call = {**call, "dtype": "float32"}
    if call["dtype"] == "bfloat16" or call["d"] == 1:
        call = {**call, "stats": [s for s in call["stats"] if s != "max" and not s.startswith("topk")]}
    q, k, v, more = build(call)
    g = torch.Generator().manual_seed(call["seed"])
    return q, k, v, {**more, "gate": torch.rand(q.shape[1], generator=g)}
