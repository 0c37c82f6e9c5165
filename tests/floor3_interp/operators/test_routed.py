"""Operators that choose keys by content, and masks, against their definitions by loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_parts import CALLS, One, check, differentiable, each, part, softmax_of
from torch import Tensor

from interp.hooks.errors import EditError
from interp.kernels.masks import symbols as M
from interp.operators.linear.features import orthogonal
from interp.operators.routed.chunks import Chunks
from interp.operators.routed.clusters import Clusters
from interp.operators.routed.dynamic_mask import DynamicMask
from interp.operators.routed.estimated import Estimated
from interp.operators.routed.landmarks import Landmarks
from interp.operators.routed.low_rank import LowRank
from interp.operators.routed.two_level import TwoLevel
from interp.operators.windows.masked import Masked, _kept

RANDOM = torch.Generator().manual_seed(4)
CENTERS = torch.randn(4, 3, 4, generator=RANDOM, dtype=torch.float64)
BASIS = torch.randn(4, 4, 2, generator=RANDOM, dtype=torch.float64)
GATE = torch.randn(4, 5, generator=RANDOM, dtype=torch.float64)
W = orthogonal(16, 4, 2)
SELF = tuple(name for name in CALLS if "cross" not in name)


def over(kept: list[set[int]], one: One) -> Tensor:
    """The softmax of a row's scores over the keys that it keeps."""
    hidden = torch.zeros_like(one.seen)
    for i, keys in enumerate(kept):
        hidden[i, sorted(keys)] = True
    return softmax_of(replace(one, seen=one.seen & hidden))


def own(one: One, i: int) -> int:
    """The key at a row's position."""
    return i + one.seen.shape[1] - one.seen.shape[0]


def largest(guess: list[float], keys: list[int], n: int) -> set[int]:
    """The later one of equals."""
    return set(sorted(keys, key=lambda j: (guess[j], j), reverse=True)[:n])


def seen_by(one: One, i: int) -> list[int]:
    return one.seen[i].nonzero().flatten().tolist()


def real_rows(one: One) -> list[int]:
    n, m = one.seen.shape
    return [i for i in range(n) if n > m or bool(one.seen[:, i + m - n].any())]


def clusters(one: One) -> Tensor:
    centers = CENTERS[one.head] / CENTERS[one.head].norm(dim=-1, keepdim=True)
    of = [[int((centers @ x).argmax()) for x in some] for some in (one.q, one.k)]
    return over([{j for j in range(len(one.k)) if of[1][j] == of[0][i] or j == own(one, i)}
                 for i in range(len(one.q))], one)  # fmt: skip


def two_level(one: One) -> Tensor:
    n, m = one.seen.shape
    windows = range(-(-m // 3))
    alive, rows = one.seen.any(0), real_rows(one)
    means = []
    for w in windows:
        of_rows = [i for i in rows if own(one, i) // 3 == w]
        of_keys = [j for j in range(m) if j // 3 == w and alive[j]]
        means.append([x[some].mean(0) if some else torch.zeros(4, dtype=torch.float64)
                      for x, some in ((one.q, of_rows), (one.k, of_keys))])  # fmt: skip
    kept: list[set[int]] = []
    for i in range(n):
        mine = own(one, i) // 3
        mates = [r for r in range(n) if own(one, r) // 3 == mine]
        readable = [w for w in windows if any(one.seen[r, j] for r in mates for j in range(m) if j // 3 == w)]
        guess = [float(means[mine][0] @ means[w][1]) for w in windows]
        picked = largest(guess, readable, 2) | {mine}
        kept.append({j for j in range(m) if j // 3 in picked})
    return over(kept, one)


def chunks(starts: tuple[int, ...] | None) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        n, m = one.seen.shape
        alive, rows, begins = one.seen.any(0), real_rows(one), starts
        if begins is None:
            pairs = [j for j in range(m - 1) if alive[j] and alive[j + 1]]
            alike = [float(one.k[j] @ one.k[j + 1] / one.k[j].norm() / one.k[j + 1].norm()) for j in range(m - 1)]
            begins = tuple(sorted(j + 1 for j in sorted(pairs, key=lambda j: alike[j])[:3]))
        of = [sum(j >= start for start in begins) for j in range(m)]

        def standing(x: Tensor, some: list[int]) -> Tensor:
            return x[some].sum(0) / max(1, len(some)) ** 0.5 if some else torch.zeros(4, dtype=torch.float64)

        q = [standing(one.q, [i for i in rows if of[own(one, i)] == c]) for c in range(max(of) + 1)]
        k = [standing(one.k, [j for j in range(m) if of[j] == c and alive[j]]) for c in range(max(of) + 1)]
        return over([largest([float(q[of[own(one, i)]] @ k[of[j]]) for j in range(m)], seen_by(one, i), 3)
                     | {own(one, i)} for i in range(n)], one)  # fmt: skip

    return define


def dynamic(one: One) -> Tensor:
    worth = torch.exp(0.5 * torch.log1p(torch.exp(one.v @ GATE[one.head])))
    s = one.q @ one.k.T * one.scale + worth
    kept = [largest(worth.tolist(), seen_by(one, i), 4) for i in range(len(one.q))]
    hidden = torch.tensor([[j in kept[i] for j in range(len(one.k))] for i in range(len(one.q))])
    return torch.softmax(s.masked_fill(~(one.seen & hidden), -torch.inf), -1).nan_to_num(0.0)


def low_rank(one: One) -> Tensor:
    m = one.seen.shape[1]
    alive = one.seen.any(0)
    q, k = one.q @ BASIS[one.head], one.k @ BASIS[one.head]
    pooled = []
    for c in range(-(-m // 2)):
        some = [j for j in range(m) if j // 2 == c and alive[j]]
        pooled.append(k[some].mean(0) if some else torch.zeros(2, dtype=torch.float64))
    kept = []
    for i in range(len(q)):
        guess = [float(q[i] @ pooled[j // 2]) for j in range(m)]
        seen = seen_by(one, i)
        kept.append(largest(guess, seen, -(-len(seen) * 4 // 10)) | {own(one, i)} & set(range(m)))
    return over(kept, one)


def estimated(one: One) -> Tensor:
    def positive(x: Tensor) -> Tensor:
        x = x * one.scale**0.5
        return torch.exp(x @ W.T - x.square().sum(-1, keepdim=True) / 2)

    a = positive(one.q) @ positive(one.k).T
    kept: list[set[int]] = []
    for i in range(len(one.q)):
        seen = seen_by(one, i)
        column = {j: (place * 4 // len(seen) if len(seen) >= 4 else place) for place, j in enumerate(seen)}
        mass = [sum(float(a[i, j]) for j in seen if column[j] == c) for c in range(4)]
        picked = largest(mass, sorted(set(column.values())), 2)
        kept.append({j for j in seen if column[j] in picked})
    return over(kept, one)


def landmarks(exact: bool, keep: int | None) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        a = torch.zeros_like(one.seen, dtype=torch.float64)
        for i in range(len(one.q)):
            s = (one.k @ one.q[i]) * one.scale
            mine = own(one, i) // 3
            inside = [j for j in seen_by(one, i) if j // 3 == mine]
            others: dict[int, list[int]] = {}
            for j in seen_by(one, i):
                if j // 3 != mine:
                    others.setdefault(j // 3, []).append(j)
            mark = {c: float(s[js].logsumexp(0) if exact else s[js].mean()) for c, js in others.items()}
            if keep is not None:
                mark = {c: mark[c] for c in sorted(mark, key=lambda c: mark[c], reverse=True)[:keep]}
            total = sum(float(s[j].exp()) for j in inside) + sum(map(math.exp, mark.values()))
            for j in inside:
                a[i, j] = s[j].exp() / total
            for c, x in mark.items():
                w = math.exp(x) / total
                a[i, others[c]] = w * torch.softmax(s[others[c]], 0)
        return a

    return define


def masked(mask: M.Mask) -> Callable[[One], Tensor]:
    def define(one: One) -> Tensor:
        n, m = one.seen.shape
        return softmax_of(replace(one, seen=one.seen & mask.dense(n, m)[0, 0]))

    return define


CASES: dict[str, tuple[Any, Callable[[One], Tensor], tuple[str, ...]]] = {
    "Clusters": (Clusters("L0", 3, centers=CENTERS), clusters, tuple(name for name in CALLS if name != "short cross")),
    "TwoLevel": (TwoLevel("L0", size=3, keep=2), two_level, SELF),
    "Chunks": (Chunks("L0", budget=3, starts=(2, 5, 9)), chunks((2, 5, 9)), SELF),
    "Chunks found": (Chunks("L0", budget=3, count=4), chunks(None), SELF),
    "DynamicMask": (DynamicMask("L0", keep=4, amount=0.5, gate=GATE), dynamic, tuple(CALLS)),
    "LowRank": (LowRank("L0", 2, pool=2, keep=0.4, basis=BASIS), low_rank, SELF),
    "Estimated": (Estimated("L0", width=4, keep=2, count=16, seed=2), estimated, tuple(CALLS)),
    "Landmarks": (Landmarks("L0", 3), landmarks(False, None), SELF),
    "Landmarks kept": (Landmarks("L0", 3, keep=1), landmarks(False, 1), SELF),
    "Landmarks exact": (Landmarks("L0", 3, keep=2, landmark="exact"), landmarks(True, 2), SELF),
    "Masked": (Masked("L0", M.Window(2) | M.Prefix(1)), masked(M.Window(2) | M.Prefix(1)), SELF),
    "a class token": (
        Masked("L0", M.After(1, M.Windows((2, 5), (1, 2), (0, 1)))),
        masked(M.After(1, M.Windows((2, 5), (1, 2), (0, 1)))), ("full", "padded pictures"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, (_, _, calls) in CASES.items() for call in calls])
def test_an_operator_is_its_definition(name: str, call: str) -> None:
    operator, define, _ = CASES[name]
    check(operator, part(call), define, near=1e-6 if "Masked" in name or "class" in name else 1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name != "a class token"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    differentiable(CASES[name][0], part("left", size=0.5))


DENSE = {
    "all windows": TwoLevel("L0", size=4, keep=3),
    "all windows of a grid": TwoLevel("L0", size=2, keep=9, grid=(5, 2)),
    "all windows, shared": TwoLevel("L0", size=4, keep=3, shared=True),
    "one cluster": Clusters("L0", 1),
    "the whole budget": Chunks("L0", budget=11),
    "one chunk": Chunks("L0", budget=11, count=1),
    "every key": DynamicMask("L0", keep=11, amount=0.0),
    "the whole share": LowRank("L0", 2, keep=1.0),
    "every column": Estimated("L0", width=4, keep=4),
    "exact landmarks": Landmarks("L0", 3, landmark="exact"),
    "one block": Landmarks("L0", 64),
    "a wide window": Masked("L0", M.Window(64)),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("call", ["full", "causal", "left"])
def test_who_keeps_everything_is_dense(name: str, call: str) -> None:
    p = part(call)
    want = each(p, softmax_of)
    torch.testing.assert_close(DENSE[name].pattern(p), want, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(DENSE[name].z(p), want @ p.values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("call", ["causal", "cached", "left", "right"])
def test_gathered_keys_give_what_all_keys_give(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias, a soft cap and sinks as well, and rows whose blocks are all empty."""
    monkeypatch.setattr("interp.operators.windows.masked.ROWS", 2)
    monkeypatch.setattr("interp.operators.windows.masked.KEYS", 3)
    monkeypatch.setattr("interp.operators.windows.masked.SPARSE", 1.0)
    g = torch.Generator().manual_seed(1)
    p = part(call)
    queries = p.q.shape[2]
    more = replace(p, softcap=2.0, sinks=torch.randn(4, generator=g), bias=torch.randn(1, 4, queries, 11, generator=g))
    for one in (p, more):
        for mask in (M.Prefix(1) | M.Window(2), M.PowerBlocks(1, 1), M.Blocks(torch.eye(4, dtype=torch.bool), 3)):
            operator = Masked("L0", mask)
            assert _kept(operator._hidden(one)) is not None
            want = one.read(operator.pattern(one))
            torch.testing.assert_close(operator.z(one), want, atol=1e-6, rtol=1e-6)
    differentiable(Masked("L0", M.Prefix(1) | M.Window(2)), part(call, size=0.5))


def test_a_stride_as_wide_as_the_window_is_block_diagonal() -> None:
    """Generalised neighbourhoods with stride equal to window, and windows, are one pattern."""
    p = replace(part("full"), q=part("full").q[:, :, :9], k=part("full").k[:, :, :9], v=part("full").v[:, :, :9])
    one = Masked("L0", M.Neighborhood((9,), 3, stride=3)).pattern(p)
    torch.testing.assert_close(one, Masked("L0", M.Windows((9,), 3)).pattern(p))
    blocks = torch.block_diag(*[torch.ones(3, 3)] * 3).bool()
    assert bool(((one > 0) == blocks).all())


def test_heads_that_share_the_choice_read_the_same_keys() -> None:
    p = part("full")
    alone, together = (TwoLevel("L0", size=3, keep=1, shared=shared).pattern(p) > 0 for shared in (False, True))
    assert bool((together == together[:, :1]).all())
    assert not bool((alone == alone[:, :1]).all())


def test_found_centers_are_those_of_spherical_k_means() -> None:
    p = part("full", heads=1, kv=1)
    x = torch.nn.functional.normalize(p.k[0, 0], dim=-1)
    centers = torch.stack([x[[j for j in range(11) if j * 3 // 11 == c]].sum(0) for c in range(3)])
    for _ in range(10):
        centers = torch.nn.functional.normalize(centers, dim=-1)
        of = (x @ centers.T).argmax(-1)
        centers = torch.stack([x[of == c].sum(0) if bool((of == c).any()) else centers[c] for c in range(3)])
    torch.testing.assert_close(Clusters("L0", 3).found(p)[0, 0], torch.nn.functional.normalize(centers, dim=-1))


def test_main_directions_are_those_of_the_keys() -> None:
    p = part("full", heads=1, kv=1)
    found = LowRank("L0", 2).directions(p)[0, 0]
    vectors = torch.linalg.svd(p.k[0, 0], full_matrices=False)[2][:2]
    torch.testing.assert_close(found @ found.T, vectors.T @ vectors)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no mask": (lambda: Masked("L0"), "needs a mask"),
    "clusters": (lambda: Clusters("L0", 0), "count is at least 1"),
    "windows": (lambda: TwoLevel("L0", keep=0), "size and keep"),
    "grid": (lambda: TwoLevel("L0", grid=(4, 4)).z(part("full")), "a grid of 16"),
    "budget": (lambda: Chunks("L0", budget=0), "budget and count"),
    "starts": (lambda: Chunks("L0", starts=(4, 2)), "in order"),
    "keep": (lambda: DynamicMask("L0", keep=0), "keep is at least 1"),
    "overflow": (lambda: DynamicMask("L0", amount=1e4).z(part("full")), "smaller amount"),
    "more queries": (lambda: Chunks("L0").z(part("short cross")), "not the last of 5 keys"),
    "marks": (lambda: Landmarks("L0").z(part("short cross")), "not the last of 5 keys"),
    "share": (lambda: LowRank("L0", keep=0.0), "keep is in"),
    "width": (lambda: Estimated("L0", width=0), "at least 1"),
    "landmark": (lambda: Landmarks("L0", landmark="last"), "'mean' or 'exact'"),
    "sink": (lambda: Landmarks("L0").z(replace(part("causal"), sinks=torch.ones(4))), "in no block"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(EditError, match=said):
        call()
