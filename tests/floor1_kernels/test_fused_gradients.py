"""Gradients of the Triton kernels, interpreted, against the dense fp64 reference's.

In fp32 the tolerance is that of the other gradient tests. In fp16 the same mathematics in the same precision is a dense
computation in fp32 that rounds where the kernels round: weights before they meet v, and the gradients of z and of
scores before they meet k and q.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from attention_calls import calls, compared, tolerance
from attention_gradients import check, drawn, leaves, pulled
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.errors import AttentionError
from interp.kernels.gpu import fused
from interp.kernels.masks import symbols as M

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"),
]
KEYS = torch.arange(75)
STATS = ["entropy", "distance", "first", "previous", "self", "sink", "mass:third", "max", "topk:3"]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_equals_the_reference() -> None:
    def compare(call: dict[str, Any]) -> bool:
        edits = [e for e in dict.fromkeys(call["edits"]) if e not in ("identity", "uniform")]
        topk = [s for s in call["stats"] if s.startswith("topk")]
        stats = [s for s in call["stats"] if s not in ("received", "received_mean", *topk[1:])]
        mask = "bool" if call["mask"] in ("additive", "alibi") else call["mask"]
        check(*drawn({**call, "edits": edits, "stats": stats, "mask": mask, "dtype": "float32"}), "triton")
        return True

    assert compared(calls(fused.COMPILED), compare, most=4) == 4


def long(**more: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, h, n, d, generator=g) for h, n, d in ((2, 70, 24), (1, 75, 24), (1, 75, 20)))
    arguments = {
        "mask": M.Causal(), "sinks": torch.randn(2, generator=g), "edits": [], "stats": STATS, "softcap": None,
        "key_sets": {"third": KEYS % 3 == 0}, "gate": torch.rand(2, generator=g),
    }  # fmt: skip
    return q, k, v, {**arguments, **more}


CHANGED: dict[str, dict[str, Any]] = {
    "scores": {
        "softcap": 3.0, "edits": [E.Temperature(0.7, heads=(1,)), E.Emphasize(KEYS < 9, 0.3),
                                  E.BiasKeys(KEYS % 5 == 0, -0.5), E.MaskKeys(KEYS == 4, heads=(0,))],
    },
    "redistribute": {"edits": [E.Redistribute(KEYS < 5, KEYS >= 40, 0.4)]},
    "blends": {"edits": [E.Blend("uniform", 0.2), E.Blend("identity", 0.3, heads=(1,))],
               "stats": ["distance", "first", "mass:third"]},
    "blocks": {"mask": M.Power() & M.Causal()},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_over_several_tiles(name: str) -> None:
    check(*long(**CHANGED[name]), "triton")


def test_a_temperature_and_a_gate_have_a_gradient() -> None:
    q, k, v, _ = long()
    values = torch.tensor([0.7, 1.4], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    found = []
    for impl in ("triton", "rows"):
        edits = [E.Temperature(values[0]), E.Gate(values[1])]
        out = attention.attend(q, k, v, mask=M.Causal(), softcap=3.0, edits=edits, stats=["entropy"], impl=impl)
        assert out.z is not None
        found.append(torch.autograd.grad(out.z.square().sum() + out.stats["entropy"].sum(), values))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=0)


class Rounded(torch.autograd.Function):
    """Rounds to fp16 what goes forward, or what comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: bool) -> Tensor:
        ctx.back = back
        return x.clone() if back else x.half().float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return (g.half().float() if ctx.back else g), None


def dense(q: Tensor, k: Tensor, v: Tensor, temper: Tensor, *, rounding: bool) -> dict[str, Tensor]:
    """z, log-sum-exp and entropy of causal attention with a soft cap of 3 and a bias of 1 on every third key."""

    def rounded(x: Tensor, back: bool) -> Tensor:
        return Rounded.apply(x, back) if rounding else x

    raw = rounded(q @ k.repeat_interleave(2, 1).transpose(-1, -2), True) * 24**-0.5
    s = 3 * torch.tanh(raw / 3) / temper[None, :, None, None] + (KEYS[: k.shape[2]] % 3 == 0)
    hidden = ~torch.ones(s.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    lse = s.masked_fill(hidden, -torch.inf).logsumexp(-1)
    p = (s - lse.unsqueeze(-1)).masked_fill(hidden, -torch.inf).exp()
    z = rounded(rounded(p, False) @ v.repeat_interleave(2, 1), True)
    return {"z": z, "lse": lse, "entropy": lse - (p * s).sum(-1)}


def test_equals_the_reference_in_fp16() -> None:
    q, k, v, _ = long()
    given = {"q": q.half(), "k": k.half(), "v": v.half(), "temper": torch.tensor([0.7, 1.5])}
    found = []
    for dtype, rounding in ((torch.float64, False), (torch.float32, True), (torch.float16, False)):
        made = {n: (x if dtype == torch.float16 else x.to(dtype)).detach().requires_grad_() for n, x in given.items()}
        if dtype != torch.float16:
            outputs = dense(**made, rounding=rounding)
        else:
            edits = [E.Temperature(made["temper"]), E.BiasKeys(KEYS % 3 == 0, 1.0)]
            out = attention.attend(
                made["q"], made["k"], made["v"], mask=M.Causal(), softcap=3.0, edits=edits, stats=["lse", "entropy"],
                impl="triton",
            )  # fmt: skip
            assert out.z is not None
            outputs = {"z": out.z, **out.stats}
        found.append(pulled({n: outputs[n] for n in ("z", "lse", "entropy")}, made, 5))
    for name, exact in found[0].items():
        got, low = found[2][name], found[1][name]
        own = 0.0 if got.dtype == torch.float32 else torch.finfo(torch.float16).eps * float(exact.abs().amax())
        near = tolerance(low, exact, 3.0) + own
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=near, msg=lambda text, n=name: f"{n}: {text}")


def test_gradients_are_the_same_bits_again() -> None:
    made, arguments = leaves(*long(), torch.float32)
    found = []
    for _ in range(2):
        out = attention.attend(made["q"], made["k"], made["v"], impl="triton", **arguments)
        assert out.z is not None
        found.append(pulled({"z": out.z, **out.stats}, made, 3))
    assert all(torch.equal(x, found[1][n]) for n, x in found[0].items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stats": ["received"]}, "a gradient is wanted, and received attention has none here"),
        (
            {"stats": ["entropy"], "edits": E.Blend("uniform", 0.5)},
            "a gradient is wanted, and entropy, max and topk have none here after a blend",
        ),
    ],
)
def test_gradients_it_cannot_give_are_refused(arguments: dict[str, Any], said: str) -> None:
    q, k, v, _ = long()
    q.requires_grad_()
    assert attention.explain(q, k, v, impl="triton", **arguments)["triton"] == said


def test_a_second_derivative_is_refused() -> None:
    q, k, v = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    z = attention.attend(q, k, v, impl="triton").z
    assert z is not None
    with pytest.raises(AttentionError, match=r"no second derivative \(create_graph=True\); use impl='rows'"):
        torch.autograd.grad(z.sum(), q, create_graph=True)
