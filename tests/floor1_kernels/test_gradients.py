"""Gradients of z and of every statistic against those of the dense fp64 reference, and what is refused.

The tolerance is that of the forward tests: four times the error of the reference's own gradient in fp32, and no less
than the rounding of a score.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_calls import calls, compared
from attention_gradients import check, drawn, leaves, pulled
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M
from interp.kernels.native import marshal
from interp.kernels.request import request


def test_native_gradients_equal_the_reference() -> None:
    def compare(call: dict[str, Any]) -> bool:
        q, k, v, more = drawn(call)
        if sum(s.startswith("topk") for s in more["stats"]) > 1:
            more["stats"] = [s for s in more["stats"] if s != "topk:1"]
        check(q, k, v, more, "native")
        return True

    assert compared(calls(), compare, most=100) == 100


def long(dtype: torch.dtype, **more: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """More rows than one block and more keys than one panel, with everything asked for."""
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, h, n, d, generator=g).to(dtype) for h, n, d in ((4, 110, 40), (2, 131, 40), (2, 131, 23)))
    keys = torch.arange(131)
    stats = ["entropy", "distance", "first", "previous", "self", "sink", "mass:third", "received", "received_mean"]
    edits = [
        E.Temperature(0.7, heads=(1,)), E.Emphasize(keys < 9, 0.3), E.BiasKeys(keys % 5 == 0, -0.5),
        E.MaskKeys(keys == 4, heads=(0, 2)), E.Redistribute(keys < 5, keys >= 90, 0.4, heads=(0, 1)),
        E.Blend("uniform", 0.2), E.Blend("identity", 0.3, heads=(3,)),
    ]  # fmt: skip
    arguments = {
        "mask": M.Causal() & M.Window(70), "sinks": torch.randn(4, generator=g), "edits": edits, "stats": stats,
        "key_sets": {"third": keys % 3 == 0}, "gate": torch.rand(4, generator=g),
    }  # fmt: skip
    return q, k, v, {**arguments, **more}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edited", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_native_gradients_over_many_blocks(dtype: torch.dtype, edited: bool, softcap: float | None) -> None:
    more = {"softcap": softcap} | ({} if edited else {"edits": []})
    check(*long(dtype, **more), "native")


def test_native_gradients_under_a_mask_that_goes_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marshal, "MASK_BYTES", 2**13)
    g = torch.Generator().manual_seed(5)
    q, k, v, more = long(torch.float32, mask=torch.rand(2, 4, 110, 131, generator=g) > 0.4)
    assert len(list(marshal.runs(request(q, k, v, mask=more["mask"])))) > 10
    check(q, k, v, more, "native")


def test_native_gradients_without_v() -> None:
    q, k, _, more = long(torch.float32)
    del more["gate"]
    check(q, k, None, more, "native")


def test_native_gradients_are_the_same_bits_again_and_on_more_threads() -> None:
    made, arguments = leaves(*long(torch.float32), torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 1, 2):
            torch.set_num_threads(n)
            out = attention.attend(made["q"], made["k"], made["v"], impl="native", **arguments)
            assert out.z is not None
            found.append(pulled({"z": out.z, **out.stats}, made, 3))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(x, other[n]) for n, x in found[0].items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bias": torch.zeros(1, 4, 1, 131)}, "a gradient of bias is not one of Gate.value, k, q, sinks, v"),
        ({"mask": torch.zeros(110, 131)}, "a gradient of bias is not one of Gate.value, k, q, sinks, v"),
        (
            {"edits": E.Temperature(torch.ones(4))},
            "a gradient of Temperature.value is not one of Gate.value, k, q, sinks, v",
        ),
    ],
)
def test_gradients_that_native_cannot_give_are_refused(arguments: dict[str, Any], said: str) -> None:
    q, k, v, _ = long(torch.float32)
    wanted = arguments.get("bias", arguments.get("mask"))
    wanted = arguments["edits"].value if wanted is None else wanted
    wanted.requires_grad_()
    assert attention.explain(q, k, v, **arguments)["native"] == said
    with pytest.raises(AttentionError, match=said):
        attention.attend(q, k, v, impl="native", **arguments)
    out = attention.attend(q, k, v, **arguments)
    assert out.z is not None
    assert out.impl == "rows"
    out.z.square().sum().backward()
    assert wanted.grad is not None
    assert bool((wanted.grad != 0).any())


@pytest.mark.parametrize("impl", ["native", "merge"])
def test_a_second_derivative_is_refused(impl: str) -> None:
    q, k, v = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    z = attention.attend(q, k, v, impl=impl).z
    assert z is not None
    with pytest.raises(AttentionError, match=r"no second derivative \(create_graph=True\); use impl='rows'"):
        torch.autograd.grad(z.sum(), q, create_graph=True)
