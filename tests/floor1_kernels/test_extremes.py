"""Weights far below the last digit of others: targets of next to no weight, sinks that take nearly all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.cpu import reference
from interp.kernels.masks import symbols as M
from interp.kernels.request import request

SOURCE, TARGET = torch.arange(8) < 3, torch.arange(8) > 5
NEAR = 8 * 8 * torch.finfo(torch.float32).eps
"""Scores of 8 products and sums of 8 keys, each rounded."""


def tensors() -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(1, 2, 8, 8, generator=g).requires_grad_() for _ in range(3)]


def by_hand(q: Tensor, k: Tensor, v: Tensor, below: float, fraction: float) -> Tensor:
    """z in fp64; the target's keys share what they are given by their scores among themselves, whatever is below."""
    s = (q.double() @ k.double().transpose(-1, -2)) / math.sqrt(8)
    p = (s - below * TARGET).softmax(-1)
    given = fraction * (p * SOURCE).sum(-1, keepdim=True)
    among = s.masked_fill(~TARGET, -torch.inf).softmax(-1)
    return (p * (1 - fraction * SOURCE) + given * among) @ v.double()


@pytest.mark.parametrize("impl", ["rows", "merge", "sweep", "native", "reference", "triton"])
@pytest.mark.parametrize("below", [1.0, 60.0, 95.0, 300.0])
def test_a_target_of_next_to_no_weight_takes_what_it_is_given(impl: str, below: float) -> None:
    q, k, v = tensors()
    edits = [E.BiasKeys(TARGET, -below), E.Redistribute(SOURCE, TARGET, 0.5)]
    out = attention.attend(*(x.detach() for x in (q, k, v)), edits=edits, impl=impl)
    exact = by_hand(q, k, v, below, 0.5)
    assert int(out.counts["unmoved"]) == 0
    # A score near -below is known to below * eps, and so are the proportions among the target's keys.
    near = NEAR + 4 * below * torch.finfo(torch.float32).eps
    torch.testing.assert_close(out.z.double(), exact, rtol=0, atol=near * float(v.detach().abs().max()))
    if impl == "sweep":
        return
    out = attention.attend(q, k, v, edits=edits, impl=impl)
    wanted = torch.autograd.grad(exact.square().sum(), (q, k, v))
    for x, y in zip(torch.autograd.grad(out.z.square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=8 * near, atol=8 * near * float(y.abs().max()))


def test_the_fp32_reference_has_a_gradient_there_too() -> None:
    q, k, v = tensors()
    made = request(q, k, v, edits=[E.BiasKeys(TARGET, -60.0), E.Redistribute(SOURCE, TARGET, 0.5)])
    z = reference.attend(made, dtype=torch.float32)[0]
    assert z is not None
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(z.sum(), (q, k, v)))


@pytest.mark.parametrize("impl", ["rows", "sweep", "native", "reference", "triton"])
@pytest.mark.parametrize("own", [-40.0, 18.0, 40.0, 300.0])
def test_a_sink_that_takes_nearly_all_leaves_every_digit_of_the_rest(impl: str, own: float) -> None:
    q, k, v = tensors()
    names = ["entropy", "sink", "max"]
    s = (q.double() @ k.double().transpose(-1, -2)) / math.sqrt(8)
    logs = torch.nn.functional.pad(s, (0, 1), value=own).log_softmax(-1)[..., :-1]
    p = logs.exp()
    exact = {"entropy": -(p * logs).sum(-1), "max": p.amax(-1)}
    grad = impl != "sweep"
    out = attention.attend(
        *(x if grad else x.detach() for x in (q, k, v)), sinks=torch.full((2,), own), stats=names, impl=impl
    )
    near = 40 * (NEAR + abs(own) * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(
        out.z.double(), p @ v.double(), rtol=near, atol=max(near * float(p.detach().max()), 1e-37)
    )
    for name, x in exact.items():
        torch.testing.assert_close(
            out.stats[name].double(), x, rtol=near, atol=1e-37, msg=lambda t, n=name: f"{n}: {t}"
        )
    if grad:
        wanted = torch.autograd.grad((p @ v.double()).sum() + exact["entropy"].sum(), (q, k, v))
        for x, y in zip(torch.autograd.grad(out.z.sum() + out.stats["entropy"].sum(), (q, k, v)), wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=near, atol=max(near * float(y.abs().max()), 1e-37))


@pytest.mark.parametrize("impl", ["rows", "merge", "sweep", "native", "triton"])
@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_any_finite_scale_is_computed(impl: str, scale: float) -> None:
    q, k, v = (x.detach() for x in tensors())
    hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
    exact = (scale * (q.double() @ k.double().transpose(-1, -2))).masked_fill(hidden, -torch.inf).softmax(
        -1
    ) @ v.double()
    out = attention.attend(q, k, v, mask=M.Causal(), scale=scale, impl=impl)
    torch.testing.assert_close(out.z.double(), exact, rtol=0, atol=NEAR * float(v.abs().max()))
