"""Rows that meet their keys part by part, against the fp64 definition of the whole sequence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.kernels.attention import attend
from interp.kernels.cpu import ring
from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M
from interp.kernels.stats import concat, ratio

KEYS = 13
STATS = (
    "lse", "entropy", "max", "argmax", "topk:1", "topk:4", "topk:20", "distance", "first", "previous", "self", "sink",
    "mass:some", "received", "seen",
)  # fmt: skip
MASKS: dict[str, M.Mask] = {
    "full": M.Full(),
    "causal": M.Causal(),
    "sliding": M.Causal() & M.Window(3),
    "prefix": M.Causal() | M.Prefix(5),
    "padded in front": M.Causal() & M.Padding(torch.tensor([KEYS - 4, KEYS]), "left", KEYS),
    "documents": M.Causal() & M.Documents(torch.tensor([0] * 6 + [1] * 7)),
    "added": M.Dense(torch.randn(1, 4, KEYS, KEYS, generator=torch.Generator().manual_seed(0))),
}


def parted(
    q: Tensor, k: Tensor, v: Tensor | None, cuts: Sequence[int], order: Sequence[int], **how: Any
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Every run of rows by itself, the parts of keys coming by in an order; put together."""
    spans = list(pairwise(cuts))
    keys = [ring.KeyPart(a, k[:, :, a:b], None if v is None else v[:, :, a:b]) for a, b in spans]
    found = []
    for a, b in spans:
        own = q[:, :, a:b]
        asked = ring.Circle.of(own, start=a, keys=k.shape[2], **how)
        found.append(ring.attend_ring(own, lambda: (keys[n] for n in order), asked))
    z = None if v is None else torch.cat([one for one, _, _ in found if one is not None], 2)
    return z, concat([stats for _, _, stats in found])


def drawn(dtype: torch.dtype = torch.float64, keys: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, h, keys, d, generator=made).to(dtype) for h, d in ((4, 8), (2, 8), (2, 5)))  # type: ignore[return-value]


def given(mask: M.Mask) -> dict[str, Any]:
    some = torch.arange(KEYS) % 3 == 1
    return {"mask": mask, "stats": STATS, "key_sets": {"some": some}, "scale": 0.7, "softcap": 6.0,
            "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}  # fmt: skip


def same(found: dict[str, Tensor], exact: dict[str, Tensor], **near: float) -> None:
    assert set(found) == set(exact)
    for name, value in exact.items():
        torch.testing.assert_close(
            found[name].to(value), value, **near, msg=lambda text, name=name: f"{name}: {text}"
        )  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
def test_parts_are_the_whole_however_they_are_cut(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts at random: empty parts, single rows, parts in any order, tiles smaller than parts."""
    drawing = random.Random(mask)
    cuts = sorted([0, KEYS, *drawing.choices(range(KEYS + 1), k=3)])
    order = drawing.sample(range(len(cuts) - 1), len(cuts) - 1)
    monkeypatch.setattr(ring, "COLUMNS", drawing.choice([4, 1024]))
    monkeypatch.setattr(ring, "TILE", drawing.choice([100, 2**19]))
    q, k, v = drawn()
    how = given(MASKS[mask])
    exact = attend(q, k, v, impl="reference", **how)
    first = {"first": torch.tensor([4, 0] if "padded" in mask else [0])}
    z, found = parted(q, k, v, cuts, order, **how, **first)
    torch.testing.assert_close(z, exact.z)
    same(found, exact.stats)


def test_halves_in_single_precision() -> None:
    q, k, v = drawn(torch.bfloat16)
    how = given(M.Causal())
    exact = attend(q, k, v, impl="reference", **how)
    z, found = parted(q, k, v, [0, 6, KEYS], [1, 0], **how)
    assert z is not None
    assert z.dtype == torch.bfloat16
    same(found, exact.stats, rtol=1e-5, atol=1e-5)


def test_large_scores_and_a_part_of_no_weight() -> None:
    q, k, v = drawn(torch.float32)
    k[:, :, :6] *= 400
    few = [s for s in STATS if not s.startswith("topk")]  # whose keys are any where weights round to 0
    how = {**given(M.Causal()), "softcap": None, "stats": few}
    exact = attend(q, k, v, impl="reference", **how)
    _, found = parted(q, k, v, [0, 6, KEYS], [0, 1], **how)
    assert float(exact.stats["lse"].max()) > 300
    same(found, exact.stats, rtol=1e-3, atol=1e-3)


def test_the_largest_on_ties_is_the_lowest_whatever_came_first() -> None:
    q, k = torch.ones(1, 1, 6, 2), torch.ones(1, 1, 6, 2)
    for order in ([0, 1, 2], [2, 1, 0]):
        _, found = parted(q, k, None, [0, 2, 4, 6], order, stats=["argmax", "topk:6"])
        assert found["argmax"].tolist() == [[[0] * 6]]
        assert found["topk:6.keys"].sort(-1).values.tolist() == [[[[*range(6)]] * 6]]


def test_without_values_and_statistics_there_is_the_log_sum_exp() -> None:
    q, k, _ = drawn()
    asked = ring.Circle.of(q[:, :, 4:], start=4, keys=KEYS, mask=M.Causal())
    z, lse, stats = ring.attend_ring(q[:, :, 4:], lambda: [ring.KeyPart(0, k)], asked)
    assert z is None
    assert stats == {}
    torch.testing.assert_close(lse, attend(q, k, None, mask=M.Causal(), impl="reference").lse[:, :, 4:])


def test_averages_over_rows_come_of_the_sums_of_parts() -> None:
    q, k, v = drawn()
    how = {"mask": M.Causal(), "scale": 1.0}
    _, found = parted(q, k, v, [0, 1, 9, KEYS], [2, 0, 1], stats=["received", "seen"], **how)
    exact = attend(q, k, v, stats=["received_mean"], impl="reference", **how)
    torch.testing.assert_close(ratio(found["received"], found["seen"]), exact.stats["received_mean"])


def test_no_pattern_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor made is a tile, however long the sequence."""
    monkeypatch.setattr(ring, "TILE", 64)
    monkeypatch.setattr(ring, "COLUMNS", 8)
    sizes = []
    whole = ring._scores
    monkeypatch.setattr(ring, "_scores", lambda *a: sizes.append((s := whole(*a))[0].numel()) or s)
    q, k, v = drawn(keys=24)
    parted(q, k, v, [0, 12, 24], [0, 1], mask=M.Causal(), stats=["entropy", "received"])
    assert max(sizes) <= 64


WRONG: dict[str, tuple[dict[str, Any], list[tuple[int, int]], str]] = {
    "a hole": ({}, [(0, 5), (6, KEYS)], "once each"),
    "twice": ({}, [(0, 7), (6, KEYS)], "once each"),
    "the end is missing": ({}, [(0, 6)], "once each"),
    "nothing": ({}, [], "once each"),
    "a mean over rows": ({"stats": "received_mean"}, [(0, KEYS)], "received_mean"),
    "no key set": ({"stats": "mass:image"}, [(0, KEYS)], "key_sets"),
    "outside": ({"start": 5}, [(0, KEYS)], "not in a sequence"),
    "no first": ({"stats": "first", "mask": M.Padding(torch.tensor([3]))}, [(0, KEYS)], "give first="),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_wrong_is_refused(name: str) -> None:
    how, spans, says = WRONG[name]
    q, k, v = drawn()

    def ask() -> None:
        asked = ring.Circle.of(q, **{"start": 0, "keys": KEYS, **how})
        ring.attend_ring(q, lambda: [ring.KeyPart(a, k[:, :, a:b], v[:, :, a:b]) for a, b in spans], asked)

    with pytest.raises(AttentionError, match=says):
        ask()
