"""The tree of the largest weight, against all trees there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.operators import dependency_tree


def best(p: Tensor, root: int | None) -> float:
    """The largest total log weight of any tree, its root counted by its weight on itself."""
    n = len(p)
    found = -float("inf")
    for parents in itertools.product(range(n), repeat=n):
        roots = [v for v in range(n) if parents[v] == v]
        if len(roots) != 1 or (root is not None and roots != [root]) or not all(map(leads, [parents] * n, range(n))):
            continue
        found = max(found, total(p, list(parents)))
    return found


def leads(parents: tuple[int, ...], v: int) -> bool:
    for _ in parents:
        v = parents[v]
    return parents[v] == v


def total(p: Tensor, parents: list[int]) -> float:
    return float(sum(p[v, u].log() for v, u in enumerate(parents)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("root", [None, 1])
def test_the_tree_is_the_best_of_all(seed: int, root: int | None) -> None:
    p = torch.softmax(2 * torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), -1)
    found = dependency_tree(p, root=root)
    parents = [v if u == -1 else u for v, u in enumerate(found)]
    assert found.count(-1) == 1
    assert root is None or found[root] == -1
    assert all(leads(tuple(parents), v) for v in range(5))
    assert abs(total(p, parents) - best(p, root)) < 1e-9


def test_a_circle_of_favourites_is_broken() -> None:
    p = torch.tensor([[0.1, 0.8, 0.1], [0.85, 0.1, 0.05], [0.1, 0.3, 0.6]])
    assert dependency_tree(p) == [2, 0, -1]


def test_a_causal_pattern_hangs_on_earlier_tokens() -> None:
    p = torch.softmax(torch.randn(12, 12).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf), -1)
    found = dependency_tree(p)
    assert found[0] == -1
    assert all(u < v for v, u in enumerate(found))


def test_one_token_is_its_own_tree() -> None:
    assert dependency_tree(torch.ones(1, 1)) == [-1]


def test_what_is_no_pattern_is_refused() -> None:
    for wrong in (torch.ones(2, 3), -torch.ones(2, 2)):
        with pytest.raises(InputsError, match="look at each other"):
            dependency_tree(wrong)
    with pytest.raises(InputsError, match="root is one of 2"):
        dependency_tree(torch.ones(2, 2), root=2)
