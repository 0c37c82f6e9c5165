"""Statistics of a pattern given as numbers are those of the attention it came from."""

from __future__ import annotations

import pytest
import torch

from interp.kernels.attention import attend
from interp.kernels.cpu.given import OF_SCORES, statistics
from interp.kernels.cpu.reference import pattern
from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M
from interp.kernels.request import request
from interp.kernels.stats import KINDS

NAMES = [
    *(name for name, kind in KINDS.items() if name not in OF_SCORES and not kind.argument),
    "topk:1",
    "topk:30",
    "mass:some",
]


@pytest.mark.parametrize("rows", [None, [0, 4, 11]])
@pytest.mark.parametrize("mask", [None, M.Causal(), M.Causal() & M.Window(3)])
def test_they_are_what_the_reference_finds_on_the_way(mask: M.Mask | None, rows: list[int] | None) -> None:
    q, k = torch.randn(2, 4, 12, 8, dtype=torch.float64), torch.randn(2, 2, 15, 8, dtype=torch.float64)
    asked = {"mask": mask, "stats": NAMES, "rows": rows, "key_sets": {"some": torch.rand(2, 15) < 0.5}}
    made = request(q, k, None, **asked)
    found, want = statistics(pattern(made), made), attend(q, k, None, impl="reference", **asked).stats
    assert set(found) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_rows_that_the_mask_hides_count_for_nothing_and_weight_beyond_it_is_seen() -> None:
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    shown = torch.tensor([[False] * 3, [True, False, False], [True, True, False]])[None, None]
    made = request(q, k, None, mask=M.Dense(shown), stats=["received", "seen", "argmax", "max"])
    weights = torch.tensor([[0.0, 0.0, 9.0], [0.2, 0.0, 0.7], [0.6, 0.4, 0.0]])[None, None]
    found = statistics(weights, made)
    torch.testing.assert_close(found["received"][0, 0], torch.tensor([0.8, 0.4, 0.7]))
    assert found["seen"][0, 0].tolist() == [2, 1, 1]
    assert found["argmax"][0, 0].tolist() == [-1, 2, 0]
    torch.testing.assert_close(found["max"][0, 0], torch.tensor([0.0, 0.7, 0.6]))


@pytest.mark.parametrize("name", OF_SCORES)
def test_what_only_scores_have_is_refused(name: str) -> None:
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    with pytest.raises(AttentionError, match=f"'{name}' is one of the scores"):
        statistics(torch.ones(1, 1, 3, 3), request(q, k, None, stats=[name]))
    with pytest.raises(AttentionError, match=r"is \[1, 1, 3, 3\]; got \[1, 1, 3, 2\]"):
        statistics(torch.ones(1, 1, 3, 2), request(q, k, None, stats=["max"]))
