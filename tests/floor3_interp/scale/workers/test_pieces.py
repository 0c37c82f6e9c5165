"""Pieces of chunks: handed out, lost, tried again, halved, given up, and put together in their order."""

from __future__ import annotations

import random

import torch
from toiling import Little, Toil

import interp
from interp.cells.work import Finished
from interp.scale.workers.pieces import Piece, Pieces


def numbers(low: int, high: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    return {"metric": torch.arange(low, high).double()[:, None] ** 2}, {"metric": float(high)}


def finish(pieces: Pieces, piece: Piece) -> Finished | None:
    return pieces.done(piece, *numbers(piece.low, piece.high))


def test_whatever_happens_to_pieces_every_chunk_comes_back_whole_once() -> None:
    """Deaths, returned pieces, halves for want of memory and single failures in any order."""
    for seed in range(40):
        chance = random.Random(seed)
        bounds = [(0, 1), (1, 6), (6, 8), (8, 16)]
        pieces, found, raised = Pieces(bounds), [], set[int]()
        out: list[Piece] = []
        while pieces.left:
            while len(out) < 3 and (piece := pieces.take()) is not None:
                out.append(piece)
            piece = out.pop(chance.randrange(len(out)))
            what = chance.choice(["done", "lost", "back", "memory", "failed", "done"])
            if what == "lost" and piece.deaths < 8:
                pieces.lost(piece, "killed")
            elif what == "back":
                pieces.back(piece)
            elif what == "memory" and piece.high - piece.low > 1:
                pieces.halve(piece)
            elif what == "failed" and piece.low not in raised:
                raised.add(piece.low)
                pieces.failed(piece, "once")
            elif (whole := finish(pieces, piece)) is not None:
                found.append(whole)
        assert not out
        assert sorted((low, high) for low, high, *_ in found) == bounds
        for low, high, values, floors in found:
            assert values["metric"].equal(numbers(low, high)[0]["metric"])
            assert floors["metric"] == high


def test_the_cell_that_raises_is_found_and_the_rest_of_the_work_goes_on() -> None:
    pieces, found, handed = Pieces([(0, 8), (8, 16), (16, 24)]), [], 0
    while (piece := pieces.take()) is not None:
        handed += 1
        if piece.low <= 13 < piece.high:
            pieces.failed(piece, "ValueError: unlucky")
        elif (whole := finish(pieces, piece)) is not None:
            found.append(whole[:2])
    assert not pieces.left
    assert sorted(found) == [(0, 8), (16, 24)]
    assert [str(one) for one in pieces.given_up] == ["cell 13: ValueError: unlucky"]
    assert handed == 2 + 3 + 2 * 3  # two whole chunks; the third three times, then halves, three levels of them


def test_where_everything_raises_chunks_are_not_searched_cell_by_cell() -> None:
    pieces, handed = Pieces([(n, n + 100) for n in range(0, 1000, 100)]), 0
    while not pieces.hopeless and (piece := pieces.take()) is not None:
        handed += 1
        pieces.failed(piece, "no")
    assert pieces.hopeless
    assert handed <= 10 * 3


def test_a_piece_that_kills_its_workers_is_given_up() -> None:
    pieces = Pieces([(0, 2), (2, 4)], deaths=4)
    while (piece := pieces.take()) is not None:
        if piece.low == 2:
            pieces.lost(piece, "signal 9")
        else:
            finish(pieces, piece)
    assert [str(one) for one in pieces.given_up] == [
        "cells 2 to 3: 4 workers died over it, the last one so: signal 9",
    ]
    assert not pieces.left


def test_work_of_these_tests_gives_the_same_numbers_for_any_chunks() -> None:
    m = interp.attach(Little())
    whole, _ = Toil(m, 6, 6).compute(0, 6)
    halves = [Toil(m, 6, 6).compute(low, low + 2)[0]["first"] for low in (0, 2, 4)]
    assert torch.cat(halves).equal(whole["first"])
