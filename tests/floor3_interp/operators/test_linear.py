"""Operators that are linear in length, against their definitions by loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_parts import CALLS, One, check, differentiable, each, normal, part, softmax_of
from torch import Tensor

from interp.hooks.errors import EditError
from interp.kernels.masks.symbols import Causal, Dense, Documents, Window
from interp.operators.linear import streams
from interp.operators.linear.agent import Agent
from interp.operators.linear.features import orthogonal
from interp.operators.linear.inline import InLine
from interp.operators.linear.linear import Linear, slopes
from interp.operators.linear.local_linear import LocalLinear
from interp.operators.linear.rank_augmented import RankAugmented
from interp.operators.linear.scan import PrefixScan

MAPS = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
W = orthogonal(8, 4, 3)


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def hedgehog(one: One, x: Tensor, which: int) -> Tensor:
    y = x @ MAPS[which, one.head].T
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)


def positive(one: One, x: Tensor) -> Tensor:
    x = x * one.scale**0.5
    return torch.exp(x @ W.T - x.square().sum(-1, keepdim=True) / 2) / 8**0.5


def taylor(one: One) -> Tensor:
    s = one.q @ one.k.T * one.scale
    return 1 + s + s**2 / 2


PRODUCTS: dict[str, Callable[[One], Tensor]] = {
    "elu": lambda one: elu(one.q) @ elu(one.k).T,
    "relu": lambda one: one.q.clamp(min=0) @ one.k.clamp(min=0).T,
    "silu": lambda one: (one.q * one.q.sigmoid()) @ (one.k * one.k.sigmoid()).T,
    "identity": lambda one: one.q @ one.k.T,
    "exp": lambda one: (one.q * one.scale**0.5).exp() @ (one.k * one.scale**0.5).exp().T,
    "taylor": taylor,
    "random": lambda one: positive(one, one.q) @ positive(one, one.k).T,
    "hedgehog": lambda one: hedgehog(one, one.q, 0) @ hedgehog(one, one.k, 1).T,
}
MORE: dict[str, dict[str, Any]] = {
    "silu": {"normalize": False}, "identity": {"normalize": False}, "hedgehog": {"maps": MAPS},
    "random": {"count": 8, "seed": 3},
}  # fmt: skip


def linear(feature: str, rate: Any = None, **more: Any) -> tuple[Linear, Callable[[One], Tensor]]:
    operator = Linear("L0", feature, rate=rate, **{**MORE.get(feature, {}), **more})

    def define(one: One) -> Tensor:
        a = PRODUCTS[feature](one)
        if rate is not None:
            n, m = a.shape
            own = float(torch.as_tensor(rate, dtype=torch.float64).flatten().expand(4)[one.head])
            apart = torch.tensor([[abs(i + m - n - j) for j in range(m)] for i in range(n)]).double()
            a = a * torch.exp(-own * apart)
        return normal(a, one.seen) if operator.normalize else a * one.seen

    return operator, define


@pytest.fixture(params=[4, 128], ids=["in blocks", "at once"])
def _blocks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("feature", "call"),
    [
        *(("elu", call) for call in CALLS),
        *((feature, call) for feature in PRODUCTS for call in ("left", "cross", "full")),
    ],
)
def test_linear_attention_is_its_definition(feature: str, call: str) -> None:
    check(*swapped(linear(feature), part(call)))


def swapped(made: tuple[Any, Any], p: Any) -> tuple[Any, Any, Any]:
    return made[0], p, made[1]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("call", [name for name in CALLS if "cross" not in name])
@pytest.mark.parametrize(
    ("feature", "rate", "normalize"),
    [("silu", slopes(4).double(), False), ("elu", 0.3, True), ("elu", torch.tensor([0.0, 0.1, 1.0, 30.0]), True)],
    ids=["lightning", "elu", "slow and fast"],
)
def test_decay_is_its_definition(feature: str, rate: Any, normalize: bool, call: str) -> None:
    check(*swapped(linear(feature, rate, normalize=normalize), part(call)))


def test_rates_are_those_of_alibi_scaled_by_the_layer() -> None:
    torch.testing.assert_close(slopes(8), torch.tensor([2.0 ** -(n + 1) for n in range(8)]) * (1 + 1e-5))
    twelve = [2.0 ** -(n + 1) for n in range(8)] + [2.0 ** -(0.5 + n) for n in range(4)]
    torch.testing.assert_close(slopes(12, layer=1, layers=3), torch.tensor(twelve) * (0.5 + 1e-5))


def inline(one: One) -> Tensor:
    a = torch.zeros(len(one.q), len(one.k), dtype=torch.float64)
    for i, q in enumerate(one.q):
        seen = one.seen[i].nonzero().flatten().tolist()
        mean = one.k[seen].mean(0) if seen else None
        for j in seen:
            assert mean is not None
            a[i, j] = (one.scale * q @ one.k[j] + 1 - one.scale * q @ mean) / len(seen)
    return a


def rank_augmented(one: One) -> Tensor:
    """Padding is what no row sees."""
    n, m = one.seen.shape
    alive = one.seen.any(0)
    fq, fk = elu(one.q), elu(one.k)
    real = [i for i in range(n) if n > m or alive[i + m - n]]
    ahead = n != m or any(one.seen[i, j] for i in range(n) for j in range(m) if j > i)
    alpha = torch.zeros(m, dtype=torch.float64)
    for j in range(m):
        rows = real if ahead else [i for i in real if i <= j]
        g = fq[rows].mean(0) if rows else torch.zeros_like(fq[0])
        alpha[j] = torch.exp(one.scale * g @ fk[j])
    return normal(fq @ fk.T * alpha, one.seen)


def agent(one: One) -> Tensor:
    """Three agents, of runs of the rows that are real."""
    n, m = one.seen.shape
    alive = one.seen.any(0)
    real = [i for i in range(n) if n > m or alive[i + m - n]]
    runs: list[list[int]] = [[], [], []]
    for place, i in enumerate(real):
        runs[place * 3 // len(real)].append(i)
    agents = torch.stack([one.q[run].mean(0) for run in runs if run])
    first = torch.softmax(one.q @ agents.T * one.scale, -1)
    second = torch.softmax((agents @ one.k.T * one.scale).masked_fill(~alive, -torch.inf), -1)
    return (first @ second) * one.seen.any(-1, keepdim=True)


QUERY = torch.randn(4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def scan(one: One) -> Tensor:
    return softmax_of(replace(one, q=QUERY[one.head].expand_as(one.q)))


def local(ridge: float) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        a = torch.zeros(len(one.q), len(one.k), dtype=torch.float64)
        for i, q in enumerate(one.q):
            seen = one.seen[i].nonzero().flatten().tolist()
            if not seen:
                continue
            w = torch.exp(one.scale * one.k[seen] @ q)
            x = one.k[seen] - q
            s = sum(w[j] * torch.outer(x[j], x[j]) for j in range(len(seen)))
            mu, omega = (w[:, None] * x).sum(0), w.sum()
            rho = torch.linalg.solve(s + ridge * omega * torch.eye(4, dtype=torch.float64), mu)
            a[i, seen] = w * (1 - x @ rho) / (omega - mu @ rho)
        return a

    return define


OTHERS: dict[str, tuple[Any, Callable[[One], Tensor], tuple[str, ...]]] = {
    "InLine": (InLine("L0"), inline, tuple(CALLS)),
    "RankAugmented": (RankAugmented("L0"), rank_augmented, tuple(CALLS)),
    "Agent": (Agent("L0", 3), agent, ("full", "padded pictures", "cross", "short cross", "one")),
    "PrefixScan": (PrefixScan("L0", QUERY), scan, tuple(name for name in CALLS if name != "window")),
    "LocalLinear": (LocalLinear("L0", ridge=0.2), local(0.2), tuple(CALLS)),
}


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("name", "call"), [(name, call) for name, (_, _, calls) in OTHERS.items() for call in calls])
def test_an_operator_is_its_definition(name: str, call: str) -> None:
    operator, define, _ = OTHERS[name]
    check(operator, part(call), define)


@pytest.mark.parametrize("name", [*PRODUCTS, "decay", *OTHERS])
def test_gradients_are_those_of_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 4)
    call = "padded pictures" if name == "Agent" else "left"
    operator = OTHERS[name][0] if name in OTHERS else linear(*(("elu", 0.3) if name == "decay" else (name,)))[0]
    differentiable(operator, part(call, size=0.5))


def test_inline_rows_sum_to_one_with_negative_weights() -> None:
    found = InLine("L0").pattern(part("causal", size=2.0))
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert bool((found < 0).any())


def test_inline_loses_little_where_queries_and_keys_are_long() -> None:
    """Its weights are differences of products that may be a million times as large."""
    p = part("causal", dtype=torch.float32, size=300.0)
    want = each(p, inline) @ p.values.double()
    gap = (InLine("L0").z(p) - want).abs().amax() / want.abs().amax()
    assert float(gap) < 1e-5
    shifted = replace(p, k=p.k + 1e4)
    want = each(shifted, inline) @ p.values.double()
    gap = (InLine("L0").z(shifted) - want).abs().amax() / want.abs().amax()
    assert float(gap) < 1e-4


def test_local_linear_attention_is_softmax_where_the_ridge_is_large() -> None:
    p = part("causal")
    torch.testing.assert_close(LocalLinear("L0", ridge=1e9).pattern(p), each(p, softmax_of), atol=1e-6, rtol=1e-6)


def test_local_linear_attention_reproduces_values_that_are_linear_in_keys() -> None:
    p = part("full", heads=2, kv=2)
    m = torch.randn(4, 5, dtype=torch.float64)
    p = replace(p, v=p.k @ m + 3.0)
    torch.testing.assert_close(LocalLinear("L0", ridge=1e-12).z(p), p.q @ m + 3.0, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(LocalLinear("L0", ridge=10.0).z(p), p.q @ m + 3.0, atol=1e-2)


def test_taylor_is_softmax_to_third_order() -> None:
    """The gap shrinks by 8 where scores shrink by 2, which are products of q and k that shrink by the root."""
    gaps = []
    for size in (0.2, 0.2 / 2**0.5):
        p = part("causal", size=size)
        gaps.append(float((Linear("L0", "taylor").pattern(p) - each(p, softmax_of)).abs().max()))
    assert 7 < gaps[0] / gaps[1] < 9


def test_more_random_features_come_nearer_to_softmax() -> None:
    p = part("causal", size=0.7)
    want = each(p, softmax_of)
    gaps = [float((Linear("L0", "random", count=n).pattern(p) - want).abs().mean()) for n in (16, 16384)]
    assert gaps[1] < gaps[0] / 8
    assert gaps[1] < 5e-3


def test_a_scan_of_the_own_query_is_dense_causal_attention() -> None:
    p = part("causal", heads=2, kv=2)
    still = replace(p, q=p.q[:, :, :1].expand_as(p.q))
    torch.testing.assert_close(PrefixScan("L0").z(still), each(still, softmax_of) @ still.values)


def test_a_scan_refuses_rows_that_leave_out_early_keys() -> None:
    with pytest.raises(EditError, match="leaves out keys"):
        PrefixScan("L0", QUERY).z(part("window"))


def test_agents_refuse_towers_that_hide_later_keys() -> None:
    with pytest.raises(EditError, match="see different keys"):
        Agent("L0", 2).z(part("causal"))


def test_agents_on_a_grid_are_means_of_cells() -> None:
    p = part("full")
    found = Agent("L0", 2, grid=(2, 5)).pattern(p)
    cells = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]]

    def define(one: One) -> Tensor:
        agents = torch.stack([one.q[cell].mean(0) for cell in cells])
        return torch.softmax(one.q @ agents.T * one.scale, -1) @ torch.softmax(agents @ one.k.T * one.scale, -1)

    torch.testing.assert_close(found, each(p, define))


@pytest.mark.usefixtures("_blocks")
def test_documents_do_not_read_each_other() -> None:
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    check(*swapped(linear("elu"), replace(part("full"), mask=Causal() & Documents(ids))))


@pytest.mark.parametrize("rate", [None, 0.2])
@pytest.mark.parametrize("mask", [
    Causal() & Window(5), Window(4), Documents(torch.tensor([0] * 5 + [1] * 6)),
    Causal() & Documents(torch.tensor([0] * 4 + [1] * 7)), Dense(torch.ones(11, 11).tril(-3).bool()),
], ids=["window", "both sides", "documents", "causal documents", "gone by"])  # fmt: skip
def test_what_rows_no_longer_see_leaves_the_sum(mask: Any, rate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 2)
    check(*swapped(linear("elu", rate), replace(part("full"), mask=mask)))


def test_what_a_model_adds_to_scores_is_not_dropped() -> None:
    p = part("causal")
    added = {"bias": torch.ones(1, 4, 11, 11), "sinks": torch.ones(4)}
    for name, value in added.items():
        for operator in (Linear("L0"), InLine("L0"), RankAugmented("L0"), PrefixScan("L0", QUERY)):
            with pytest.raises(EditError, match=name.removesuffix("s")):
                operator.z(replace(p, **{name: value}))
    check(Linear("L0"), replace(p, softcap=1.0), linear("elu")[1])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "feature": (lambda: Linear("L0", "gelu"), "feature is one of"),
    "signed": (lambda: Linear("L0", "silu"), "normalize=False"),
    "count": (lambda: Linear("L0", "random", count=0), "count is at least 1"),
    "rate": (lambda: Linear("L0", rate=-1.0), "rate at least 0"),
    "ridge": (lambda: LocalLinear("L0", ridge=0.0), "ridge must be above 0"),
    "no maps": (lambda: Linear("L0", "hedgehog").z(part("full")), "needs maps"),
    "heads": (lambda: Linear("L0", rate=torch.ones(3)).z(part("full")), "has 3 heads"),
    "agents": (lambda: Agent("L0", 0), "count is at least 1"),
    "grid": (lambda: Agent("L0", 2, grid=(9, 9)).z(part("full")), "a grid of 81"),
    "slopes": (lambda: slopes(4, layer=2, layers=2), "slopes are of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(EditError, match=said):
        call()
