"""What comparing with the reference cannot show: brute force, gradients, chunks, bad input, poisoned memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.kernels import attention, stats
from interp.kernels import edits as E
from interp.kernels.cpu import merge, products, tiles
from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M
from interp.kernels.native import library
from interp.kernels.request import request

EVERY = ["rows", "sweep", "native"]


def tensors(
    n: int = 12, *, heads: int = 4, kv: int = 2, d: int = 8, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(2, h, n, d, generator=g).to(dtype) for h in (heads, kv, kv)]


def brute(q: Tensor, k: Tensor, v: Tensor, b: int, h: int, i: int) -> tuple[list[float], list[float]]:
    """One causal row, in Python's own floats: weights and z."""
    kv = h // (q.shape[1] // k.shape[1])
    s = [
        sum(float(x) * float(y) for x, y in zip(q[b, h, i], k[b, kv, j], strict=True)) / math.sqrt(8)
        for j in range(i + 1)
    ]
    total = sum(math.exp(x) for x in s)
    p = [math.exp(x) / total for x in s]
    return p, [sum(p[j] * float(v[b, kv, j, c]) for j in range(i + 1)) for c in range(8)]


DEFINITIONS = {
    "entropy": lambda p, i: -sum(x * math.log(x) for x in p),
    "max": lambda p, i: max(p),
    "argmax": lambda p, i: p.index(max(p)),
    "distance": lambda p, i: sum(x * abs(i - j) for j, x in enumerate(p)),
    "first": lambda p, i: p[0],
    "previous": lambda p, i: p[i - 1] if i > 0 else 0.0,
    "self": lambda p, i: p[i],
    "mass:odd": lambda p, i: sum(p[1::2]),
    "sink": lambda p, i: 0.0,
}


@pytest.mark.parametrize("impl", [*EVERY, "reference"])
def test_every_statistic_is_its_definition(impl: str) -> None:
    q, k, v = tensors()
    odd = torch.arange(12) % 2 == 1
    names = [*DEFINITIONS, "topk:3", "received", "seen", "received_mean"]
    out = attention.attend(q, k, v, mask=M.Causal(), stats=names, key_sets={"odd": odd}, impl=impl)
    received = torch.zeros(2, 4, 12, dtype=torch.float64)
    for b in range(2):
        for h in range(4):
            for i in range(12):
                p, z = brute(q, k, v, b, h, i)
                received[b, h, : i + 1] += torch.tensor(p, dtype=torch.float64)
                assert out.z is not None
                assert out.z[b, h, i].tolist() == pytest.approx(z, abs=1e-5)
                for name, definition in DEFINITIONS.items():
                    assert float(out.stats[name][b, h, i]) == pytest.approx(definition(p, i), abs=1e-5), name
                best = sorted(range(i + 1), key=lambda j, p=p: -p[j])[:3]
                assert out.stats["topk:3.keys"][b, h, i].tolist() == best + [-1] * (3 - len(best))
                assert out.stats["topk:3"][b, h, i, : len(best)].tolist() == pytest.approx(
                    [p[j] for j in best], abs=1e-6
                )
    torch.testing.assert_close(out.stats["received"].double(), received, rtol=0, atol=1e-5)
    assert out.stats["seen"][0, 0].tolist() == list(range(12, 0, -1))
    mean = received / torch.arange(12, 0, -1)
    torch.testing.assert_close(out.stats["received_mean"].double(), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [M.Causal(), M.Full(), M.Causal() & M.Padding(torch.tensor([0, 3]))])
def test_gradients_of_rows(mask: M.Mask) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(5, heads=2, kv=1, d=3, dtype=torch.float64))
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(2, dtype=torch.float64, requires_grad=True)
    some = torch.arange(5) < 2

    def run(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        out = attention.attend(
            q, k, v, mask=mask, sinks=sinks, softcap=3.0, impl="rows", key_sets={"some": some},
            stats=["entropy", "max", "mass:some", "received", "sink", "distance"],
            edits=[E.Temperature(0.7), E.Redistribute(some, ~some, 0.3), E.Blend("uniform", 0.2), E.Gate(gate)],
        )  # fmt: skip
        assert out.z is not None
        return out.z, *(x for x in out.stats.values())

    assert torch.autograd.gradcheck(run, (q, k, v, sinks, gate), fast_mode=True)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_merge(causal: bool) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(6, heads=2, kv=1, d=3, dtype=torch.float64))

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        found = merge.spans(q[:, :, 1:], k, v, bounds=[(0, 2), (2, 3), (3, 6)], causal=causal, scale=0.6)
        return found.weights(), found.merged()

    assert torch.autograd.gradcheck(run, (q, k, v), fast_mode=True)


def test_span_attribution_is_the_derivative_and_the_knockout() -> None:
    q, k, v = tensors(8, heads=2, kv=2, dtype=torch.float64)
    dz = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    bounds = [(0, 1), (1, 4), (4, 8)]
    found = merge.spans(q, k, v, bounds=bounds, causal=True, scale=0.5)
    by_weight, by_knockout = merge.attribution(found, dz)
    for c, (a, b) in enumerate(bounds):
        keys = (torch.arange(8) >= a) & (torch.arange(8) < b)

        def loss(amount: float, keys: Tensor = keys) -> Tensor:
            edit = E.BiasKeys(keys, amount)
            out = attention.attend(q, k, v, mask=M.Causal(), scale=0.5, edits=[edit], impl="reference")
            assert out.z is not None
            return (out.z * dz).sum((-1, -2))

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        torch.testing.assert_close(by_weight[c], slope, rtol=1e-6, atol=1e-7)
        if c == 2:
            sees_more = torch.arange(8) >= 0
            gone = attention.attend(q, k, v, mask=M.Causal(), scale=0.5, edits=[E.MaskKeys(keys)], impl="reference").z
            whole = attention.attend(q, k, v, mask=M.Causal(), scale=0.5, impl="reference").z
            assert gone is not None
            assert whole is not None
            lost = ((whole - gone) * dz).sum(-1)[..., sees_more].sum(-1)
            torch.testing.assert_close(by_knockout[c], lost, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("impl", EVERY)
def test_chunks_of_a_prefill_merge_exactly(impl: str) -> None:
    q, k, v = tensors(12)
    names = ["entropy", "argmax", "topk:2", "received", "seen", "received_mean", "lse"]
    whole = attention.attend(q, k, v, mask=M.Causal(), stats=names, impl=impl)
    parts = [
        attention.attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], mask=M.Causal(), stats=names, impl=impl).stats
        for a, b in ((0, 5), (5, 6), (6, 12))
    ]
    for name, found in stats.concat(parts).items():
        torch.testing.assert_close(found, whole.stats[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", [*EVERY, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blind_rows_give_zero(impl: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(4, dtype=dtype)
    names = [
        "entropy",
        "max",
        "argmax",
        "topk:2",
        "distance",
        "first",
        "previous",
        "self",
        "mass:all",
        "received",
        "seen",
    ]
    mask = M.Padding(torch.tensor([0, 4])) & M.Causal()
    out = attention.attend(
        q, k, v, mask=mask, stats=names, key_sets={"all": torch.ones(4, dtype=torch.bool)}, impl=impl
    )
    assert out.z is not None
    assert out.z.dtype == dtype
    assert int(out.counts["blind"]) == 16
    assert bool((out.lse[0] == -torch.inf).all())
    for name, x in {"z": out.z, **out.stats}.items():
        assert bool((x[0] == (-1 if name in ("argmax", "topk:2.keys") else 0)).all()), name
        assert bool(x.isfinite().all())
        assert bool((x[1] != 0).any()), name


@pytest.mark.parametrize("impl", EVERY)
def test_expanded_transposed_and_sliced_inputs(impl: str) -> None:
    _, k, v = tensors(10)
    wide = torch.randn(2, 10, 4, 16).transpose(1, 2)[..., ::2]
    one = k[:, :1].expand(-1, 2, -1, -1)
    plain = attention.attend(wide.contiguous(), one.contiguous(), v, mask=M.Causal(), impl="reference")
    out = attention.attend(wide, one, v, mask=M.Causal(), impl=impl)
    torch.testing.assert_close(out.z, plain.z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", EVERY)
def test_fp16_scores_do_not_overflow(impl: str) -> None:
    q, k, v = (x * 200 for x in tensors(6, dtype=torch.float16))
    out = attention.attend(q, k, v / 200, mask=M.Causal(), stats=["entropy"], impl=impl)
    exact = attention.attend(
        q.double(), k.double(), v.double() / 200, mask=M.Causal(), stats=["entropy"], impl="reference"
    )
    assert out.z is not None
    assert exact.z is not None
    assert float((q.float() @ k.float().repeat_interleave(2, 1).transpose(-1, -2)).abs().max()) > 65504
    torch.testing.assert_close(out.z.double(), exact.z, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(out.stats["entropy"].double(), exact.stats["entropy"], rtol=1e-3, atol=5e-2)


def test_pattern_and_scores_of_chosen_heads_and_rows() -> None:
    q, k, _ = tensors(9)
    mask = torch.zeros(2, 1, 9, 9).masked_fill(~M.Causal().dense(9, 9), torch.finfo(torch.float32).min)
    p = tiles.pattern(q, k, mask=mask, sinks=torch.ones(4), heads=[3, 0], rows=[2, 8])
    s = tiles.scores(q, k, mask=M.Causal(), heads=[3, 0], rows=[2, 8])
    sink = attention.attend(q, k, None, mask=M.Causal(), sinks=torch.ones(4), stats=["sink"], rows=[2, 8], impl="rows")
    assert p.shape == s.shape == (2, 2, 2, 9)
    torch.testing.assert_close(p.sum(-1), 1 - sink.stats["sink"][:, [3, 0]])
    assert torch.equal(s.isneginf(), p == 0)
    torch.testing.assert_close(s.softmax(-1) * p.sum(-1, keepdim=True), p)
    every = tiles.scores(q, k, mask=M.Causal())
    assert torch.equal(tiles.scores(q, k, mask=M.Causal(), heads=[0, 2, 1, 3]), every[:, [0, 2, 1, 3]])


def test_grouped_statistics() -> None:
    q, k, v = tensors()
    each = attention.attend(q, k, v, stats=["entropy", "received"])
    mean = attention.attend(q, k, v, stats=["entropy", "received"], reduce_groups="mean")
    torch.testing.assert_close(mean.stats["entropy"][:, 1], each.stats["entropy"][:, 2:].mean(1))
    with pytest.raises(AttentionError, match="argmax: indices of keys cannot be reduced"):
        attention.attend(q, k, v, stats=["argmax"], reduce_groups="max")


def test_places_on_a_grid_measure_distance() -> None:
    q, k, v = tensors(6)
    places = torch.tensor([[r, c] for r in range(2) for c in range(3)])
    found = [attention.attend(q, k, v, stats="distance", places=places, impl=i).stats["distance"] for i in EVERY]
    p = tiles.pattern(q, k).double()
    far = torch.cdist(places.double(), places.double())
    for x in found:
        torch.testing.assert_close(x.double(), (p * far).sum(-1), rtol=1e-5, atol=1e-5)


def test_rows_without_a_place_among_the_keys_are_at_no_distance_on_a_grid() -> None:
    """They were counted from the other end of the grid."""
    q, k, v = tensors(6)
    with pytest.raises(AttentionError, match="got 6 queries and 4 keys"):
        attention.attend(q, k[:, :, :4], v[:, :, :4], stats="distance", places=torch.zeros(4, 2))


def test_explain_says_why() -> None:
    q, k, v = tensors()
    said = attention.explain(q, k, v, mask=M.Power(), edits=E.Blend("uniform", 0.5))
    assert said["merge"] == "mask Power is not one of Causal, Full"
    assert said["sweep"] == "too small to go head by head"
    assert [n for n, reason in said.items() if reason == "taken"] == [attention.attend(q, k, v, mask=M.Power()).impl]
    with pytest.raises(AttentionError, match="no implementation 'fast'"):
        attention.attend(q, k, v, impl="fast")
    with pytest.raises(AttentionError, match="impl='merge' cannot compute this: mask Power"):
        attention.attend(q, k, v, mask=M.Power(), impl="merge")


def test_native_says_when_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = library.library.__wrapped__()
    assert found.attend is None
    assert "no C++ compiler" in str(found.reason)
    assert "native attention is off" in capsys.readouterr().err


def test_native_says_when_compiling_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "native.cpp"
    broken.write_text("this is not C++")
    monkeypatch.setattr(library, "SOURCES", (broken,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "failed" in str(library.library.__wrapped__().reason)
    assert not list((tmp_path / "interp").glob("*.so"))


SET = torch.tensor([True, False, False, True])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mask": torch.zeros(3, 4)}, "a mask for 3 queries and 4 keys"),
        ({"mask": torch.zeros(3, 1, 4, 4)}, "the mask is for batch 3"),
        ({"bias": torch.zeros(7, 4, 4)}, "a bias must broadcast"),
        ({"sinks": torch.zeros(3)}, "one number per query head, here 4"),
        ({"softcap": -1.0}, "soft cap must be positive"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"stats": "entropi"}, "no statistic 'entropi'.*Meant entropy"),
        ({"stats": ["topk"]}, "need `:argument`"),
        ({"stats": ["topk:0"]}, "at least 1"),
        ({"stats": ["mass:image"]}, "no key set for mass:image"),
        ({"stats": ["mass:a"], "key_sets": {"a": torch.ones(5, dtype=torch.bool)}}, "must be Bool \\[4\\]"),
        ({"rows": [4]}, "rows must be in -4..3"),
        ({"rows": [2, 1]}, "increasing and different"),
        ({"rows": slice(None, None, -1)}, "increasing and different"),
        ({"stats": ["first"], "first": torch.tensor([0, 1, 2])}, "one per example, here 2"),
        ({"stats": ["topk:²"]}, "at least 1"),
        ({"rows": slice(3, 3)}, "rows are indices"),
        ({"edits": E.Temperature(torch.ones(1))}, "its value is a number or \\[4\\], one per head; got \\[1\\]"),
        ({"edits": E.Gate(torch.ones(2, 4))}, "one per head; got \\[2, 4\\]"),
        ({"edits": E.MaskKeys(SET, heads=(4,))}, "query heads must be in 0..3"),
        ({"edits": E.MaskKeys(SET[:3])}, "a key set must be Bool"),
        ({"edits": E.MaskKeys(SET, rows=torch.ones(2, 3, dtype=torch.bool))}, "rows must be Bool \\[2, 4\\]"),
        ({"places": torch.zeros(5, 2)}, "places are"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(AttentionError, match=said):
        request(*tensors(4), **arguments)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 5)), "agree in batch and d"),
        (((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), "multiple of that of kv heads"),
        (((1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)), "q must be floating"),
        (((1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 4)), "at least one"),
    ],
)
def test_bad_shapes_are_refused(shapes: tuple[tuple[int, ...], ...], said: str) -> None:
    with pytest.raises(AttentionError, match=said):
        request(*(torch.zeros(s) for s in shapes))


def test_edits_compare_by_content_and_refuse_nonsense() -> None:
    assert E.MaskKeys(SET) == E.MaskKeys(SET.clone())
    assert hash(E.MaskKeys(SET)) == hash(E.MaskKeys(SET.clone()))
    assert E.MaskKeys(SET) != E.MaskKeys(~SET)
    assert E.Temperature(2.0) != E.Gate(2.0)
    for make, said in (
        (lambda: E.Redistribute(SET, SET, 0.5), "disjoint"),
        (lambda: E.Redistribute(SET, ~SET, 1.5), "fraction"),
        (lambda: E.Redistribute(SET, SET[:3], 0.5), "the same keys"),
        (lambda: M.Prefix(torch.tensor(2.5)), "whole number"),
        (lambda: M.Padding(torch.tensor([2.5])), "whole lengths"),
        (lambda: E.Temperature(0.0), "temperature"),
        (
            lambda: request(*tensors(4)[:1], *(x[:, :, :2] for x in tensors(4)[1:]), edits=E.Blend("identity", 1.0)),
            "own",
        ),
    ):
        with pytest.raises(AttentionError, match=said):
            make()


@pytest.mark.usefixtures("poisoned_native")
@pytest.mark.parametrize("impl", EVERY)
def test_outputs_are_written_everywhere(impl: str) -> None:
    q, k, v = tensors(70)
    names = ["entropy", "max", "argmax", "topk:80", "distance", "first", "previous", "self", "sink", "received", "seen"]
    out = attention.attend(q, k, v, mask=M.Causal() & M.Window(9), stats=names, impl=impl)
    for name, x in {"z": out.z, "lse": out.lse, **out.stats}.items():
        assert x is not None
        assert bool(x.isfinite().all()), name
        if not x.is_floating_point():
            assert int(x.max()) <= 70, name


@pytest.mark.parametrize("impl", ["rows", "sweep", "native", "merge"])
@pytest.mark.parametrize("bad", ["q", "k", "v"])
def test_nan_is_passed_on(impl: str, bad: str) -> None:
    given = dict(zip("qkv", tensors(20), strict=True))
    given[bad][0, 0, 3] = math.nan
    out = attention.attend(given["q"], given["k"], given["v"], mask=M.Causal(), impl=impl)
    assert out.z is not None
    later = out.z[0, 0, 3] if bad == "q" else out.z[0, 0, 3:]
    assert bool(later.isnan().all())
    assert bool(out.z[0, 2:].isfinite().all())
    assert bool(out.z[1].isfinite().all())


@pytest.mark.parametrize("impl", [*EVERY, "reference"])
def test_nan_in_a_mask_does_not_hide(impl: str) -> None:
    mask = torch.zeros(12, 12)
    mask[3, 2] = math.nan
    out = attention.attend(*tensors(), mask=mask, impl=impl)
    assert out.z is not None
    assert bool(out.z[:, :, 3].isnan().all())
    assert bool(out.z[:, :, 4:].isfinite().all())


@pytest.mark.parametrize("impl", ["rows", "sweep", "native"])
@pytest.mark.parametrize(("d", "dv"), [(1, 1), (33, 257), (320, 5)])
def test_any_head_size_is_computed(impl: str, d: int, dv: int) -> None:
    q, k, v = torch.randn(1, 2, 9, d), torch.randn(1, 1, 9, d), torch.randn(1, 1, 9, dv)
    exact = attention.attend(q, k, v, mask=M.Causal(), impl="reference")
    out = attention.attend(q, k, v, mask=M.Causal(), impl=impl)
    # A score is a sum of d fp32 products; its rounding is what exp passes on.
    near = 4 * d * torch.finfo(torch.float32).eps
    torch.testing.assert_close(out.z, exact.z, rtol=near, atol=near)


def test_head_sizes_that_flash_does_not_take_are_refused() -> None:
    q, k, v = torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 5)
    with pytest.raises(AttentionError, match="values of another width than keys is not among what it can do"):
        attention.attend(q, k, v, impl="merge")


def test_more_keys_than_32_bits_count_are_refused() -> None:
    keys = 2**31 + 1
    k = torch.zeros(1, 1, 1, 4).expand(1, 1, keys, 4)
    q = torch.zeros(1, 1, 2, 4)
    said = attention.explain(q, k, None, mask=M.Causal() & M.Window(3))
    assert said["native"] == f"{keys} keys, and they are counted in 32 bits"
    with pytest.raises(AttentionError, match="counted in 32 bits"):
        attention.attend(q, k, None, mask=M.Causal() & M.Window(3), impl="native")
    out = attention.attend(q, k, None, mask=M.Causal() & M.Window(3), stats=["entropy", "argmax"])
    assert out.impl == "sweep"
    assert out.stats["argmax"].tolist() == [[[keys - 4, keys - 3]]]
    torch.testing.assert_close(out.stats["entropy"], torch.full((1, 1, 2), math.log(3)))


@pytest.mark.parametrize("impl", ["rows", "sweep", "native", "merge", "reference"])
def test_statistics_on_an_empty_key_set_are_zero(impl: str) -> None:
    nothing = torch.zeros(12, dtype=torch.bool)
    out = attention.attend(*tensors(), mask=M.Causal(), stats=["mass:none"], key_sets={"none": nothing}, impl=impl)
    assert float(out.stats["mass:none"].abs().max()) == 0.0


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
def test_sweep_takes_the_log_sum_exp_of_another_forward(sinks: Tensor | None) -> None:
    q, k, v = tensors(70)
    some = torch.arange(70) % 3 == 0
    names = ["entropy", "max", "argmax", "topk:3", "received", "mass:some", "sink", "seen"]
    arguments = {
        "mask": M.Causal() & M.Padding(torch.tensor([0, 60])), "sinks": sinks, "stats": names,
        "key_sets": {"some": some}, "edits": [E.Temperature(0.5), E.MaskKeys(some, heads=(1,))],
    }  # fmt: skip
    plain = attention.attend(q, k, v, impl="sweep", **arguments)
    known = attention.attend(q, k, v, lse=plain.lse, **arguments)
    assert known.impl == "sweep"
    for name, x in {"z": plain.z, "lse": plain.lse, **plain.stats}.items():
        found = known.z if name == "z" else known.lse if name == "lse" else known.stats[name]
        torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    if sinks is not None:
        return
    other = attention.attend(q, k, v, lse=plain.lse + 1, **arguments)
    torch.testing.assert_close(other.stats["received"], plain.stats["received"] / math.e, rtol=1e-5, atol=1e-6)


def test_a_log_sum_exp_that_nobody_would_use_is_refused() -> None:
    q, k, v = tensors()
    lse = torch.zeros(2, 4, 12)
    with pytest.raises(AttentionError, match="the log-sum-exp of another forward pass is not among what it can do"):
        attention.attend(q, k, v, lse=lse, impl="native")
    with pytest.raises(AttentionError, match=r"lse must be \[batch, head, row\] = \[2, 4, 3\]"):
        attention.attend(q, k, v, lse=lse, rows=[1, 2, 3])
    with pytest.raises(AttentionError, match=r"no implementation can compute this: .*sweep: a gradient of q is not"):
        attention.attend(q.requires_grad_(), k, v, lse=lse)


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"dtype": torch.float64},
    "gradient": {"grad": True},
    "statistics": {"stats": ["entropy", "topk:2"]},
    "emphasis": {"edits": E.Emphasize(torch.arange(12) < 3, 0.5), "stats": "mass:a"},
    "bias": {"bias": torch.zeros(1, 1, 12, 12)},
    "rows": {"rows": [3]},
    "cap": {"softcap": 2.0},
    "topks": {"stats": ["topk:2", "topk:3"]},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_implementation_not_taken_has_its_reason_in_a_line(name: str) -> None:
    arguments = {"key_sets": {"a": torch.arange(12) % 2 == 0}} | REQUESTS[name]
    q, k, v = tensors(dtype=arguments.pop("dtype", torch.float32))
    q.requires_grad_(arguments.pop("grad", False))
    said = attention.explain(q, k, v, **arguments)
    assert list(said) == attention.names()
    assert sum(reason == "taken" for reason in said.values()) == 1
    assert said[attention.attend(q, k, v, **arguments).impl] == "taken"
    assert all(
        len(reason) > 8 and "\n" not in reason and len(reason) < 110 for reason in said.values() if reason != "taken"
    )


def test_the_setting_of_products_is_given_back_and_refused_where_it_loses_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision

    def inside(dtype: torch.dtype) -> None:
        with products.quicker(torch.zeros(1, 8, dtype=dtype)):
            raise KeyError(setting.fp32_precision)

    monkeypatch.setattr(products, "_onednn", lambda width: True)
    for dtype, there in ((torch.float32, "bf16"), (torch.float64, before)):
        with pytest.raises(KeyError, match=there):
            inside(dtype)
        assert setting.fp32_precision == before
    monkeypatch.undo()
    monkeypatch.setattr(products, "WORSE", -1.0)
    assert not products._onednn.__wrapped__(8)


@pytest.mark.parametrize("n", [1, 3])
def test_sweep_gives_the_same_bits_on_any_number_of_threads(n: int) -> None:
    q, k, v = tensors(90)
    names = ["entropy", "argmax", "topk:2", "received", "seen", "received_mean"]
    arguments = {"mask": M.Causal() & M.Padding(torch.tensor([0, 80])), "stats": names, "impl": "sweep"}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (n, 2):
            torch.set_num_threads(count)
            found.append(attention.attend(q, k, v, edits=E.Blend("identity", 0.5), **arguments))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    one, other = found
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.lse, other.lse)
    assert all(torch.equal(x, other.stats[name]) for name, x in one.stats.items())
    assert {x: int(y) for x, y in one.counts.items()} == {x: int(y) for x, y in other.counts.items()}


def test_an_error_in_a_thread_is_raised() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            products.each_alone(lambda items: 1 / (len(items) - 1), [1, 2, 3])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("impl", EVERY)
def test_late_rows_under_a_window_name_the_right_keys(impl: str) -> None:
    """Their keys start far from 0, so an offset forgotten anywhere shows."""
    q, k, v = tensors(900)
    some = torch.arange(900) % 3 == 0
    names = ["argmax", "topk:3", "distance", "first", "previous", "self", "mass:some", "received", "seen", "entropy"]
    arguments = {
        "mask": M.Causal() & M.Window(40), "rows": slice(700, 820), "stats": names, "key_sets": {"some": some},
        "edits": [E.MaskKeys(some, heads=(1,)), E.Redistribute(some, ~some, 0.5, heads=(0,)), E.Blend("identity", 0.2)],
    }  # fmt: skip
    found, exact = (attention.attend(q, k, v, impl=i, **arguments) for i in (impl, "reference"))
    near = 40 * 40 * torch.finfo(torch.float32).eps
    for name, x in {"z": exact.z, **exact.stats}.items():
        got = found.z if name == "z" else found.stats[name]
        torch.testing.assert_close(got.double(), x.double(), rtol=0, atol=near, msg=lambda text, n=name: f"{n}: {text}")


def test_rows_in_many_tiles_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(30)
    mask = M.PerHead((M.Causal(), M.Full(), M.Strided(3), M.Causal() & M.Window(4)))
    whole = attention.attend(q, k, v, mask=mask, stats=["received", "seen", "entropy"], impl="rows")
    monkeypatch.setattr(tiles, "TILE", 200)
    tiled = attention.attend(q, k, v, mask=mask, stats=["received", "seen", "entropy"], impl="rows")
    for name, x in {"z": whole.z, **whole.stats}.items():
        got = tiled.z if name == "z" else tiled.stats[name]
        torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
