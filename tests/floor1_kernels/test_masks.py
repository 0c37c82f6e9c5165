"""Masks against their definitions written as loops, and their block classes against their dense form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M

IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, -1, -1], [5, 5, 5, 5, 5, 5, 5, 4, 4, -1]])
LENGTHS = torch.tensor([3, 10])


def neighbourhood(i: int, j: int, size: int, window: int, stride: int, dilation: int, causal: bool) -> bool:
    """One axis, straight from the definition: enumerate the sub-grid of the dilation group."""
    if i % dilation != j % dilation:
        return False
    group = [x for x in range(size) if x % dilation == i % dilation]
    at, key, last = group.index(i), group.index(j), len(group) - 1
    leaders = [x for x in range(len(group)) if x // stride == at // stride]
    if causal:
        leader = min(at // stride * stride + stride - 1, last)
        assert leader == leaders[-1]
        return max(leader - window + 1, 0) <= key <= at
    leader = min(at // stride * stride + stride // 2, last)
    low = leader - window // 2
    while low < 0:
        low += 1
    while low + window - 1 > last:
        low -= 1
    return low <= key < low + window


CASES = {
    "full": (M.Full(), lambda b, i, j: True),
    "causal": (M.Causal(), lambda b, i, j: j <= i),
    "window": (M.Window(3), lambda b, i, j: abs(i - j) < 3),
    "sliding": (M.Causal() & M.Window(3), lambda b, i, j: i - 3 < j <= i),
    "prefix": (M.Causal() | M.Prefix(4), lambda b, i, j: j <= i or j < 4),
    "prefixes": (M.Prefix(torch.tensor([0, 6])), lambda b, i, j: j < (0, 6)[b]),
    "documents": (M.Documents(IDS), lambda b, i, j: IDS[b][i] == IDS[b][j] and IDS[b][i] >= 0),
    "padding": (M.Padding(LENGTHS), lambda b, i, j: j < LENGTHS[b]),
    "left": (M.Padding(LENGTHS, "left", 10) & M.Causal(), lambda b, i, j: 10 - LENGTHS[b] <= j <= i),
    "dilated": (M.Dilated(2, 3), lambda b, i, j: abs(i - j) in (0, 3)),
    "strided": (M.Strided(4), lambda b, i, j: abs(i - j) < 4 or abs(i - j) % 4 == 0),
    "power": (M.Power(), lambda b, i, j: abs(i - j) in (0, 1, 2, 4, 8)),
    "blocks": (M.Blocks(torch.eye(3, dtype=torch.bool), 4), lambda b, i, j: i // 4 == j // 4),
    "sorted": (M.Documents(IDS[1].flip(0).clamp(min=0)), lambda b, i, j: (i > 0) + (i > 2) == (j > 0) + (j > 2)),
    "windows": (M.Windows((0,), 4, 1), lambda b, i, j: (i + 1) // 4 == (j + 1) // 4),
    "halo": (M.Windows((10,), 3, 0, 2), lambda b, i, j: i // 3 * 3 - 2 <= j < i // 3 * 3 + 5),
    "shifted": (
        M.Windows((2, 5), (2, 3), (1, 2)),
        lambda b, i, j: (i // 5 + 1) // 2 == (j // 5 + 1) // 2 and (i % 5 + 2) // 3 == (j % 5 + 2) // 3,
    ),
    "power blocks": (M.PowerBlocks(1, 2), lambda b, i, j: abs(i - j) in (0, 1, 2, 4, 8) or j == 0),
    "power blocks of 3": (M.PowerBlocks(3, 1), lambda b, i, j: abs(i // 3 - j // 3) in (0, 1, 2, 4) or j < 3),
    "a class token": (M.After(1, M.Windows((9,), 3)), lambda b, i, j: i == 0 or j == 0 or (i - 1) // 3 == (j - 1) // 3),
    "either": (M.Window(2) | M.Strided(5), lambda b, i, j: abs(i - j) < 5 or abs(i - j) % 5 == 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("queries", [10, 7])
def test_dense_is_the_definition(name: str, queries: int) -> None:
    mask, sees = CASES[name]
    dense = mask.dense(queries, 10).expand(2, 1, queries, 10)
    for b, r, j in itertools.product(range(2), range(queries), range(10)):
        assert bool(dense[b, 0, r, j]) == bool(sees(b, r + 10 - queries, j)), (b, r, j)


@st.composite
def neighbourhoods(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    axes = draw(st.integers(1, 2))
    grid, window, stride, dilation, causal = [], [], [], [], []
    for _ in range(axes):
        grid.append(draw(st.integers(1, 9 if axes == 1 else 5)))
        dilation.append(draw(st.integers(1, grid[-1])))
        window.append(draw(st.integers(1, grid[-1] // dilation[-1])))
        stride.append(draw(st.integers(1, window[-1])))
        causal.append(draw(st.booleans()))
    return tuple(grid), tuple(window), tuple(stride), tuple(dilation), tuple(causal)


@given(neighbourhoods())
def test_neighbourhoods_are_those_of_the_paper(arguments: tuple[tuple[int, ...], ...]) -> None:
    mask = M.Neighborhood(*arguments)
    n = math.prod(mask.grid)
    dense = mask.dense(n, n)[0, 0]
    points = list(itertools.product(*(range(g) for g in mask.grid)))
    for (a, p), (b, q) in itertools.product(enumerate(points), repeat=2):
        near = all(neighbourhood(x, y, *axis) for x, y, axis in zip(p, q, mask.axes(), strict=True))
        assert bool(dense[a, b]) == near, (p, q)
    assert bool(dense.diagonal().all())


ALL = {n: m for n, (m, _) in CASES.items()} | {
    "grid": M.Neighborhood((2, 5), (1, 3), 1, 1, (False, True)),
    "per_head": M.PerHead((M.Causal(), M.Window(2), M.Full())),
    "tensor": M.Dense(torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(1)) > 0.5),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("queries", [10, 6])
@pytest.mark.parametrize("size", [1, 3, 4, 16])
def test_block_classes_are_true(name: str, queries: int, size: int) -> None:
    mask = ALL[name]
    if isinstance(mask, M.Dense):
        mask = M.Dense(mask.tensor[:, :, 10 - queries :])
    dense, classes = mask.dense(queries, 10), mask.classes(queries, 10, rows=size, columns=size)
    exact = not isinstance(mask, M.And | M.Or)
    for r, c in itertools.product(range(classes.shape[2]), range(classes.shape[3])):
        block = dense[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size].flatten(2)
        said = classes[:, :, r, c].expand(block.shape[:2])
        assert bool((block.all(-1) | (said != M.FULL)).all())
        assert bool((~block.any(-1) | (said != M.EMPTY)).all())
        if exact:
            assert bool((block.all(-1) == (said == M.FULL)).all()), (r, c)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_seen_outside_the_reach(name: str) -> None:
    mask = ALL[name]
    dense = mask.dense(10, 10)
    for low, high in itertools.combinations(range(10), 2):
        a, b = mask.reach(low, high, 10)
        seen = dense[:, :, low : high + 1].flatten(0, 2).any(0).nonzero().flatten().tolist()
        assert all(a <= j < b for j in seen), (low, high)
        c, d = mask.sure(low, high, 10)
        assert bool(dense[:, :, low : high + 1, c:d].all()), (low, high)


@pytest.mark.parametrize("name", ALL)
def test_intervals_are_the_mask(name: str) -> None:
    found = ALL[name].interval(torch.arange(2, 10), 10)
    if found is None:
        assert name not in ("full", "causal", "window", "sliding", "prefix", "prefixes", "padding", "left")
        return
    j = torch.arange(10)
    seen = (j >= found[0][..., None]) & (j < found[1][..., None])
    dense = ALL[name].dense(10, 10)[:, 0, 2:]
    assert torch.equal(seen.expand(2, 8, 10), dense.expand(2, 8, 10))


def test_masks_compare_by_content() -> None:
    assert M.Documents(IDS) == M.Documents(IDS.clone())
    assert hash(M.Documents(IDS)) == hash(M.Documents(IDS.clone()))
    assert M.Documents(IDS) != M.Documents(IDS + 1)
    assert M.Causal() & M.Window(2) == M.Causal() & M.Window(2)
    assert M.Causal() != M.Full()
    assert M.Dense(torch.zeros(2, 2)) != M.Dense(torch.zeros(2, 2, dtype=torch.bool))


def test_additive_masks_hide_and_bias() -> None:
    low = torch.finfo(torch.float16).min
    mask = M.Dense(torch.tensor([[0.5, low], [-3.0, float("-inf")]], dtype=torch.float16))
    i = torch.arange(2)
    assert mask.dense(2, 2)[0, 0].tolist() == [[True, False], [True, False]]
    assert mask.additive(i, i)[0, 0].tolist() == [[0.5, 0.0], [-3.0, 0.0]]
    bias = (M.Causal() & M.Alibi(torch.tensor([1.0, 0.5]))).additive(i, i)
    assert bias[0, 1].tolist() == [[0.0, -0.5], [-0.5, 0.0]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: M.Window(0), "the window must be an integer of at least 1; got 0"),
        (lambda: M.Window(-3), "got -3"),
        (lambda: M.Prefix(-1), "at least 0 keys"),
        (lambda: M.Neighborhood((4, 4), 5), "window \\* dilation <= grid"),
        (lambda: M.Neighborhood((4,), (2, 2)), "one value or 1 per argument"),
        (lambda: M.Neighborhood((4,), 2, 3), "stride <= window"),
        (lambda: M.Documents(torch.zeros(3)), "document ids are integers"),
        (lambda: M.Documents(torch.zeros(3, dtype=torch.long)).dense(4, 4), "ids for 3 keys"),
        (lambda: M.Padding(torch.tensor([2]), "left"), "how many keys"),
        (lambda: M.Padding(torch.tensor([5])).dense(4, 4), "padding for 5 keys"),
        (lambda: M.Dense(torch.zeros(3, 4)).dense(4, 4), "a mask for 3 queries and 4 keys"),
        (lambda: M.Dense(torch.zeros(4, 4, dtype=torch.long)), "Bool or floating"),
        (lambda: M.Blocks(torch.ones(2, 2, dtype=torch.bool), 2).dense(5, 5), "table of 3 x 3"),
        (lambda: (M.Causal() | M.Dense(torch.zeros(2, 2))).additive(torch.arange(2), torch.arange(2)), "no meaning"),
    ],
)
def test_bad_masks_are_refused(make: object, said: str) -> None:
    with pytest.raises(AttentionError, match=said):
        make()  # type: ignore[operator]
