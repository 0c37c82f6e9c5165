"""Operators of other kinds, against their definitions by loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_parts import CALLS, One, check, differentiable, each, normal, part, softmax_of
from torch import Tensor

from interp.hooks.errors import EditError
from interp.operators.other.channels import Channels
from interp.operators.other.memory import MemoryTokens
from interp.operators.other.relative import RelativeScores
from interp.operators.other.reversed import Reversed
from interp.operators.other.static import StaticQK, random_vectors

RANDOM = torch.Generator().manual_seed(6)
TABLE, U, W = (torch.randn(4, *shape, 4, generator=RANDOM, dtype=torch.float64) for shape in ((7,), (), ()))
KEYS, VALUES = (torch.randn(4, 2, d, generator=RANDOM, dtype=torch.float64) for d in (4, 5))
QUERY, PLACED = (torch.randn(4, *shape, 4, generator=RANDOM, dtype=torch.float64) for shape in ((), (20,)))
SELF = tuple(name for name in CALLS if "cross" not in name)


def of_queries(mean: bool) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        a = torch.exp(one.q @ one.k.T * one.scale) * one.seen
        a = (a / a.sum(0)).nan_to_num(0.0)
        return normal(a, one.seen) if mean else a

    return define


def of_senders(one: One) -> Tensor:
    return softmax_of(one).T


def relative(one: One) -> Tensor:
    s = torch.full(one.seen.shape, -torch.inf, dtype=torch.float64)
    for i in range(s.shape[0]):
        for j in one.seen[i].nonzero().flatten().tolist():
            apart = i + s.shape[1] - s.shape[0] - j
            r = TABLE[one.head, max(-3, min(3, apart)) + 3]
            s[i, j] = one.scale * ((one.q[i] + U[one.head]) @ one.k[j] + (one.q[i] + W[one.head]) @ r)
    return torch.softmax(s, -1).nan_to_num(0.0)


def memory(one: One) -> Tensor:
    s = torch.cat([one.q @ KEYS[one.head].T, one.q @ one.k.T], -1) * one.scale
    seen = torch.cat([one.seen.any(-1, keepdim=True).expand(-1, 2), one.seen], -1)
    return torch.softmax(s.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)[:, 2:]


def static(q: Any, k: Any) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        n, m = one.seen.shape
        at = torch.arange(n) + m - n
        if isinstance(q, str) and q == "mean":
            real = [i for i in range(n) if n > m or bool(one.seen[:, i + m - n].any())]
            one = replace(one, q=one.q[real].mean(0).expand(n, -1))
        elif isinstance(q, str) and q == "random":
            one = replace(one, q=random_vectors(m, 4, 4, 2 * 9)[one.head, at] * 2)
        elif isinstance(q, Tensor):
            one = replace(one, q=q[one.head, at] if q.ndim == 3 else q[one.head].expand(n, -1))
        if isinstance(k, str) and k == "random":
            one = replace(one, k=random_vectors(m, 4, 4, 2 * 9 + 1)[one.head] * 2)
        elif isinstance(k, Tensor):
            one = replace(one, k=k[one.head, :m])
        return softmax_of(one)

    return define


SCORES = {
    "mean": ("mean", "own", tuple(CALLS)), "random": ("random", "random", SELF), "given": (QUERY, "own", tuple(CALLS)),
    "placed": (PLACED, PLACED, SELF), "nothing": ("own", "own", tuple(CALLS)),
}  # fmt: skip
CASES: dict[str, tuple[Any, Callable[[One], Tensor], tuple[str, ...]]] = {
    "queries": (Reversed("L0"), of_queries(False), tuple(CALLS)),
    "slots": (Reversed("L0", mean=True), of_queries(True), tuple(CALLS)),
    "senders": (Reversed("L0", "senders"), of_senders, ("full", "padded pictures", "one")),
    "RelativeScores": (RelativeScores("L0", TABLE, U, W), relative, SELF),
    **{name: (StaticQK("L0", q, k, spread=2.0, seed=9), static(q, k), calls) for name, (q, k, calls) in SCORES.items()},
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, (_, _, calls) in CASES.items() for call in calls])
def test_an_operator_is_its_definition(name: str, call: str) -> None:
    operator, define, _ = CASES[name]
    check(operator, part(call), define, near=1e-6 if name in SCORES else 1e-9)


@pytest.mark.parametrize("call", CALLS)
def test_memory_is_read_beside_the_text(call: str) -> None:
    p, operator = part(call), MemoryTokens("L0", KEYS, VALUES)
    want = each(p, memory)
    torch.testing.assert_close(operator.pattern(p), want)
    seen = each(p, lambda one: one.seen.any(-1, keepdim=True).double())
    share = torch.stack([
        torch.softmax(torch.cat([p.q[b, h] @ KEYS[h].T, (p.q[b, h] @ p.keys[b, h].T).masked_fill(
            ~each(p, lambda one: one.seen)[b, h], -torch.inf)], -1) * p.scale, -1)[:, :2] @ VALUES[h]
        for b in range(2) for h in range(4)
    ]).unflatten(0, (2, 4))  # fmt: skip
    torch.testing.assert_close(operator.z(p), want @ p.values + share * seen)


def test_memory_that_nobody_reads_changes_nothing() -> None:
    p = part("causal")
    far = MemoryTokens("L0", torch.zeros(1, 1, 4), torch.ones(1, 1, 5))
    torch.testing.assert_close(far.pattern(p).sum(-1) < 1, torch.ones(2, 4, 11, dtype=torch.bool))
    away = replace(p, q=p.q.abs() + 1)
    none = MemoryTokens("L0", torch.full((1, 1, 4), -1e4), torch.ones(1, 1, 5))
    torch.testing.assert_close(none.z(away), each(away, softmax_of) @ away.values)


def channels(temperature: float | None) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        known = one.seen.any(0)
        q, k = one.q * known[:, None], one.k * known[:, None]
        s = torch.zeros(4, 4, dtype=torch.float64)
        for c in range(4):
            for e in range(4):
                s[c, e] = q[:, c] @ k[:, e] * one.scale
                if temperature is not None:
                    s[c, e] = q[:, c] @ k[:, e] / q[:, c].norm() / k[:, e].norm() / temperature
        return one.v @ torch.softmax(s, -1).T

    return define


@pytest.mark.parametrize("call", ["full", "padded pictures", "one"])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_channels_attend_to_channels(call: str, temperature: float | None) -> None:
    p = part(call)
    p = replace(p, v=p.v[..., :4])
    operator = Channels("L0", temperature)
    assert operator.pattern(p) is None
    torch.testing.assert_close(operator.z(p), each(p, channels(temperature)))
    differentiable(operator, p)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    differentiable(CASES[name][0], part("padded pictures" if name == "senders" else "left", size=0.5))


def test_gradients_of_memory() -> None:
    differentiable(MemoryTokens("L0", KEYS, VALUES), part("left", size=0.5))


def test_keys_share_themselves_among_rows() -> None:
    found = Reversed("L0").pattern(part("causal"))
    torch.testing.assert_close(found.sum(2), torch.ones(2, 4, 11, dtype=torch.float64))


def test_a_table_of_zeros_changes_nothing() -> None:
    p = part("causal")
    torch.testing.assert_close(RelativeScores("L0", torch.zeros(1, 3, 4)).pattern(p), each(p, softmax_of))


def test_random_vectors_of_a_longer_text_begin_alike() -> None:
    torch.testing.assert_close(random_vectors(700, 2, 3, 1)[:, :300], random_vectors(300, 2, 3, 1))


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "over": (lambda: Reversed("L0", "keys"), "'queries' or 'senders'"),
    "causal": (lambda: Reversed("L0", "senders").z(part("causal")), "hides later keys"),
    "cross": (lambda: Reversed("L0", "senders").z(part("cross")), "5 queries and 11 keys"),
    "sinks": (lambda: Reversed("L0").z(replace(part("causal"), sinks=torch.ones(4))), "learned sink"),
    "q": (lambda: StaticQK("L0", "none"), "q is 'own'"),
    "k": (lambda: StaticQK("L0", "own", "mean"), "UniformAttention"),
    "more queries": (lambda: StaticQK("L0", "random").z(part("short cross")), "11 queries are not the last"),
    "one k": (lambda: StaticQK("L0", "own", QUERY), "UniformAttention"),
    "short": (lambda: StaticQK("L0", PLACED[:, :3]).z(part("full")), "11 positions"),
    "no table": (lambda: RelativeScores("L0"), "table is"),
    "even": (lambda: RelativeScores("L0", torch.zeros(1, 4, 4)), "table is"),
    "width": (lambda: RelativeScores("L0", torch.zeros(1, 3, 5)).z(part("full")), "width 5"),
    "no memory": (lambda: MemoryTokens("L0", KEYS), "needs keys"),
    "fewer": (lambda: MemoryTokens("L0", KEYS, VALUES[:, :1]), "as many keys as values"),
    "temperature": (lambda: Channels("L0", 0.0), "above 0"),
    "channels": (lambda: Channels("L0").z(part("full")), "width 5"),
    "rows": (lambda: Channels("L0").z(replace(part("causal"), v=part("causal").k)), "see different keys"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(EditError, match=said):
        call()
