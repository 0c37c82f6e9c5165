"""Pairs of words that a search finds are those of the whole matrix; what it says of each pair is the matrix's entry."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from interp.heads.weights.word_pairs import WordPairs, word_pairs


def circuit(words: int, width: int, seed: int, *, tail: float) -> tuple[Tensor, Tensor]:
    """Vectors whose lengths differ as those of a model's words do."""
    draw = torch.Generator().manual_seed(seed)
    reads, writes = torch.randn(words, width, generator=draw), torch.randn(width, words, generator=draw)
    reads *= (tail * torch.randn(words, 1, generator=draw)).exp()
    writes *= (tail * torch.randn(1, words, generator=draw)).exp()
    return reads, writes


def whole(reads: Tensor, writes: Tensor, sign: int, keep: int) -> list[tuple[int, int]]:
    every = reads.double() @ writes.double()
    every = every - every.mean(1, keepdim=True)
    return [divmod(i, len(reads)) for i in (sign * every).flatten().topk(keep).indices.tolist()]


def found(pairs: WordPairs) -> list[list[tuple[int, int]]]:
    return [[(int(s), int(t)) for s, t, _ in one.tolist()] for one in (pairs.promoted, pairs.suppressed)]


@pytest.mark.parametrize("tail", [0.0, 0.3])
def test_a_search_of_a_large_vocabulary_finds_what_all_pairs_have(tail: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("interp.heads.weights.word_pairs"), "DRAWN", 0)
    hit = 0
    for seed in range(4):
        reads, writes = circuit(3000, 16, seed, tail=tail)
        wanted = [whole(reads, writes, sign, 8) for sign in (1, -1)]
        assert found(word_pairs(reads, writes, 8)) == wanted  # small enough for every pair
        monkeypatch.setattr(import_module("interp.heads.weights.word_pairs"), "EVERY", 0)
        pairs = word_pairs(reads, writes, 8)
        monkeypatch.undo()
        monkeypatch.setattr(import_module("interp.heads.weights.word_pairs"), "DRAWN", 0)
        assert pairs.looked == 256
        every = reads.double() @ writes.double()
        every = every - every.mean(1, keepdim=True)
        for one, some, want in zip((pairs.promoted, pairs.suppressed), found(pairs), wanted, strict=True):
            assert len(set(some)) == len(some) == 8
            assert [v for *_, v in one.tolist()] == pytest.approx([float(every[p]) for p in some], rel=1e-5)
            assert some[0] == want[0]
            hit += len(set(some) & set(want))
    assert hit >= 0.9 * 4 * 2 * 8


def test_the_share_of_words_that_raise_themselves_is_that_of_the_words_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    words = torch.randn(3000, 24, generator=draw)
    reads, writes = words, (words * (torch.rand(3000, 1, generator=draw) < 0.5)).T.contiguous()
    exact = float(word_pairs(reads, writes, 1).own)
    for name in ("EVERY", "DRAWN"):
        monkeypatch.setattr(import_module("interp.heads.weights.word_pairs"), name, 0)
    assert float(word_pairs(reads, writes, 1).own) == pytest.approx(exact, abs=0.1)
    assert 0.3 < exact < 0.7
