"""The Triton kernels, interpreted, against the fp64 reference; what they refuse; blocks they never touch.

Tolerances are those of the other kernel tests: four times the error of the reference itself in fp32, where fp16 results
also carry the rounding of their own.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from attention_calls import build, calls, check, compare, compared
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.cpu import reference
from interp.kernels.errors import AttentionError
from interp.kernels.gpu import fused, launch, visits
from interp.kernels.gpu.operands import Part, prepared
from interp.kernels.masks import symbols as M
from interp.kernels.request import request

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"),
]

STATS = [
    "lse", "entropy", "max", "argmax", "topk:3", "distance", "first", "previous", "self", "sink", "mass:third",
    "received", "seen", "received_mean",
]  # fmt: skip


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float32, heads: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, heads, queries, 24), (1, 1, keys, 24), (1, 1, keys, 20))
    return [torch.randn(*s, generator=g).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_equals_the_reference(dtype: str) -> None:
    def compare(call: dict[str, Any]) -> bool:
        if call["mask"] in ("additive", "alibi"):
            call = {**call, "mask": "bool"}
        check(*build({**call, "dtype": dtype, "edits": list(dict.fromkeys(call["edits"]))}), "triton")
        return True

    assert compared(calls(fused.COMPILED), compare, most=5) == 5


def long(keys: int, mask: M.Mask, **more: Any) -> dict[str, Any]:
    arguments = {"mask": mask, "stats": STATS, "key_sets": {"third": torch.arange(keys) % 3 == 0}}
    return {**arguments, "sinks": torch.tensor([0.5, -1.0]), **more}


def edits(keys: int) -> dict[str, list[E.Edit]]:
    at = torch.arange(keys)
    return {
        "scores": [
            E.Temperature(2.0, heads=(1,)), E.BiasKeys(at % 3 == 0, 1.0), E.Emphasize(at < 40, 0.3), E.Gate(0.5),
            E.MaskKeys(at == 4, heads=(0,)),
        ],
        "redistribute": [E.Redistribute(at < 5, at >= keys - 30, 0.5)],
        "scattered": [E.Redistribute(at % 7 == 0, at % 7 == 3, 1.0, heads=(0,)), E.Blend("uniform", 0.25)],
        "identity": [E.Blend("identity", 0.5, heads=(1,)), E.Blend("uniform", 0.5)],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["none", "scores", "redistribute", "scattered", "identity"])
def test_over_several_tiles(name: str) -> None:
    q, k, v = inputs(70, 70)
    check(q, k, v, long(70, M.Causal(), edits=edits(70).get(name), softcap=3.0), "triton")


@pytest.mark.parametrize(
    "mask", [M.Causal() & M.Window(9), M.Power() & M.Causal(), M.Neighborhood((7, 10), (3, 5)) & M.Causal()], ids=str
)
def test_under_masks_over_several_tiles(mask: M.Mask) -> None:
    q, k, v = inputs(66, 70, torch.float16)
    check(q, k, v, long(70, mask), "triton")


@pytest.mark.parametrize("name", ["none", "scores", "redistribute"])
def test_decoding_reads_each_key_once_and_is_split_over_keys(name: str) -> None:
    keys = 560
    q, k, v = inputs(1, keys, torch.float16, heads=4)
    more = long(keys, M.Causal(), edits=edits(keys).get(name), sinks=None)
    call = prepared(request(q, k, v, **more))
    assert (call.heads, call.rows) == (1, 4)
    assert launch._forward(call, Part())["lse"].shape == (2, 1, 4, 1)
    check(q, k, v, more, "triton")


def test_ties_go_to_the_lowest_key() -> None:
    q, k, v = torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 40, 8), torch.zeros(1, 1, 40, 8)
    out = attention.attend(q, k, v, mask=M.Causal(), stats=["argmax", "topk:4"], impl="triton")
    assert out.stats["argmax"].tolist() == [[[0, 0, 0]]]
    assert out.stats["topk:4.keys"].tolist() == [[[[0, 1, 2, 3]] * 3]]


def test_blocks_that_no_row_sees_are_never_read() -> None:
    table = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    q, k, v = inputs(256, 256, heads=1)
    rows, unseen = range(128, 192), torch.arange(256) // 64 % 2 == 1
    whole = request(q, k, v, mask=M.Blocks(table), rows=rows)
    assert visits.run_of_keys(whole) is None
    assert visits.lists(whole, 64, 64).visited.tolist() == [[[[True, False, True, False]]]]
    arguments: dict[str, Any] = {"mask": M.Blocks(table), "rows": rows, "stats": ["entropy", "topk:2", "received"]}
    clean = [x.requires_grad_() for x in (q, k, v)]
    dirty = [q, *(x.detach().masked_fill(unseen[:, None], torch.nan).requires_grad_() for x in (k, v))]
    with torch.no_grad():
        check(q, k, v, {**arguments, "key_sets": {}}, "triton")
        found, other = (attention.attend(*x, impl="triton", **arguments) for x in (dirty, clean))
    assert found.z is not None
    assert other.z is not None
    assert torch.equal(found.z, other.z)
    for name, x in other.stats.items():
        seen = x[..., ~unseen] if name == "received" else x
        assert torch.equal(found.stats[name][..., ~unseen] if name == "received" else found.stats[name], seen)
    gradients = []
    for leaves in (dirty, clean):
        z = attention.attend(*leaves, mask=M.Blocks(table), rows=rows, impl="triton").z
        assert z is not None
        gradients.append(torch.autograd.grad(z.square().sum(), leaves))
    assert torch.equal(gradients[0][0], gradients[1][0])
    for mine, expected in zip(gradients[0][1:], gradients[1][1:], strict=True):
        assert torch.equal(mine[:, :, ~unseen], expected[:, :, ~unseen])


def test_keys_outside_a_window_are_never_read() -> None:
    q, k, v = inputs(8, 200)
    for x in (k, v):
        x[:, :, :128] = torch.nan
    out = attention.attend(q, k, v, mask=M.Causal() & M.Window(40), stats=["entropy", "mass:all"], impl="triton",
                           key_sets={"all": torch.ones(200, dtype=torch.bool)})  # fmt: skip
    assert out.z is not None
    assert bool(out.z.isfinite().all())
    torch.testing.assert_close(out.stats["mass:all"], torch.ones(1, 2, 8))


def test_a_cell_of_a_redistribution_reads_its_own_keys_only() -> None:
    made = request(*inputs(4, 200), edits=E.Redistribute(torch.arange(200) < 40, torch.arange(200) >= 150, 0.5))
    call, keep = prepared(made), torch.arange(200)[None] >= 150
    given: dict[str, Any] = call.arguments(Part(keep), call.configuration("forward"))
    assert (given["KEPT"], given["LOW"].min(), given["HIGH"].max()) == (False, 150, 200)


@pytest.mark.parametrize("known", [False, True])
def test_without_values(known: bool) -> None:
    q, k, _ = inputs(66, 70)
    stats = ["lse", "entropy", "max", "argmax", "topk:2", "self", "sink", "received", "received_mean"]
    sinks = torch.tensor([0.5, -1.0])
    arguments: dict[str, Any] = {"mask": M.Causal(), "sinks": sinks, "stats": stats, "softcap": 3.0}
    lse, _, _ = reference.attend(request(q, k, None, **arguments))[1:]
    out = attention.attend(q, k, None, lse=lse if known else None, impl="triton", **arguments)
    assert out.z is None
    exact, low = (
        reference.attend(request(q, k, None, **arguments), dtype=d)[2] for d in (torch.float64, torch.float32)
    )
    for name, x in exact.items():
        if x.is_floating_point():
            compare(out.stats[name], low[name], x, 3.0, name)
        else:
            assert torch.equal(out.stats[name], x), name


def test_a_top_weight_of_next_to_nothing_can_take_a_redistribution() -> None:
    k = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1).expand(1, 1, 2, 16) * 8.0
    q = torch.ones(1, 1, 1, 16, requires_grad=True)
    edit = E.Redistribute(torch.tensor([True, False]), torch.tensor([False, True]), 0.5)
    out = attention.attend(q, k, k, edits=edit, stats=["max", "mass:b"], key_sets={"b": torch.tensor([False, True])},
                           impl="triton", scale=1.0)  # fmt: skip
    torch.testing.assert_close(out.stats["mass:b"], torch.full((1, 1, 1), 0.5))
    (dq,) = torch.autograd.grad(out.stats["mass:b"].sum() + out.stats["max"].sum(), q)
    assert bool(dq.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mask": torch.zeros(8, 8)}, "an additive mask or bias"),
        ({"stats": ["topk:9"]}, "topk:9, where at most 8 are kept"),
        ({"stats": ["distance"], "places": torch.zeros(8, 2)}, "distances between places"),
        ({"edits": [E.MaskKeys(torch.arange(8) == 1)] * 17}, "more than 16 edits of keys"),
        ({"lse": torch.zeros(1, 2, 8)}, "a log-sum-exp is given, and with v, a gradient, Redistribute or Blend"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments: dict[str, Any], said: str) -> None:
    q, k, v = inputs(8, 8)
    assert attention.explain(q, k, v, impl="triton", **arguments)["triton"].startswith(said)
    with pytest.raises(AttentionError, match=said):
        attention.attend(q, k, v, impl="triton", **arguments)


def test_a_mask_with_no_blocks_to_skip_is_refused_when_its_bits_would_be_too_many() -> None:
    q, k = torch.zeros(1, 1, 1, 8).expand(1, 1, 40000, 8), torch.zeros(1, 1, 1, 8).expand(1, 1, 40000, 8)
    said = visits.limits(request(q, k, k, mask=M.Power()))
    assert said is not None
    assert said.startswith("mask Power is not one run of keys per row, and its blocks may need")
    assert visits.limits(request(q, k, k, mask=M.Neighborhood((200, 200), (13, 13)))) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's limits")
def test_the_interpreter_refuses_bf16_and_is_never_chosen() -> None:
    q, k, v = inputs(8, 8, torch.bfloat16)
    with pytest.raises(AttentionError, match=r"torch\.bfloat16 is not one of"):
        attention.attend(q, k, v, impl="triton")
    said = attention.explain(*inputs(8, 8))
    assert said["triton"] == "interpreted; only when asked for by name"


def test_the_reference_of_these_tests_moves_weights() -> None:
    q, k, v = inputs(70, 70)
    plain, *others = (
        reference.pattern(request(q, k, v, mask=M.Causal(), edits=e)) for e in [None, *edits(70).values()]
    )
    assert all(float((x - plain).abs().amax()) > 0.01 for x in others)
