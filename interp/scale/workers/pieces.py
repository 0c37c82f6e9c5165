"""What is left to do, as pieces of chunks that are handed out, come back, fail or get lost.

A piece is a whole chunk at first. One whose worker died is handed out again, however often workers die under others.
One that raised is tried again, `tries` times in all, each time after everything that waits; then it is halved until the
cells that raise are alone, which are given up by name. A piece that took too much memory is halved. A chunk is finished
when all of its pieces are, and its parts are joined in the order of its cells.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from interp.cells.failures import GivenUp
from interp.cells.journal import Values
from interp.cells.work import Finished, Floors

Bounds = tuple[int, int]
HOPELESS = 3
"""As many chunks that failed while none was ever finished are taken to say something about all."""


@dataclass(eq=False)
class Piece:
    """Some cells of one chunk."""

    chunk: Bounds
    low: int
    high: int
    failures: int = 0
    deaths: int = 0


@dataclass(eq=False)
class Pieces:
    """The pieces of some chunks."""

    bounds: Sequence[Bounds]
    tries: int = 3
    deaths: int = 9
    waiting: deque[Piece] = field(default_factory=deque)
    given_up: list[GivenUp] = field(default_factory=list)
    _parts: dict[Bounds, dict[int, tuple[int, Values, Floors]]] = field(default_factory=lambda: defaultdict(dict))
    _finished: int = 0

    def __post_init__(self) -> None:
        self.waiting.extend(Piece((low, high), low, high) for low, high in self.bounds)
        self._unsettled: dict[Bounds, int] = dict.fromkeys((piece.chunk for piece in self.waiting), 1)
        """By chunk, how many of its pieces are neither done nor given up."""

    @property
    def left(self) -> bool:
        """Whether anything is still to be done."""
        return bool(self._unsettled)

    @property
    def hopeless(self) -> bool:
        """Whether so many chunks failed, and none was finished, that the fault is not a cell's."""
        return not self._finished and len({one.chunk for one in self.given_up}) >= HOPELESS

    def take(self) -> Piece | None:
        """The next piece, or None where all are under way."""
        return self.waiting.popleft() if self.waiting else None

    def back(self, piece: Piece) -> None:
        """It was handed out and nobody began with it."""
        self.waiting.appendleft(piece)

    def done(self, piece: Piece, values: Values, floors: Floors) -> Finished | None:
        """A piece came back; its chunk, where that makes it whole."""
        self._parts[piece.chunk][piece.low] = (piece.high, values, floors)
        if not self._settle(piece.chunk):
            return None
        parts = self._parts.pop(piece.chunk)
        if any(one.chunk == piece.chunk for one in self.given_up):
            return None
        self._finished += 1
        return joined(piece.chunk, parts)

    def lost(self, piece: Piece, why: str) -> None:
        """Its worker died while it worked on it: it is tried again after all others, so that deaths that have another
        cause do not all fall on one piece."""
        piece.deaths += 1
        if piece.deaths >= self.deaths:
            self._give_up(piece, f"{piece.deaths} workers died over it, the last one so: {why}")
        else:
            self.waiting.append(piece)

    def failed(self, piece: Piece, why: str) -> None:
        """It raised."""
        piece.failures += 1
        if piece.failures < self.tries:
            self.waiting.append(piece)
        elif piece.high - piece.low > 1 and not self._at_a_loss(piece):
            self.halve(piece, failures=self.tries - 1)
        else:
            self._give_up(piece, why)

    def halve(self, piece: Piece, *, failures: int = 0) -> None:
        """Go on with its halves: it took too much memory, or a cell of it is looked for."""
        middle = (piece.low + piece.high) // 2
        for low, high in ((middle, piece.high), (piece.low, middle)):
            self.waiting.appendleft(Piece(piece.chunk, low, high, failures, piece.deaths))
        self._unsettled[piece.chunk] += 1

    def _at_a_loss(self, piece: Piece) -> bool:
        """Whole chunks that raise where nothing was ever finished are not searched cell by cell."""
        return not self._finished and len(self.bounds) >= HOPELESS and (piece.low, piece.high) == piece.chunk

    def _give_up(self, piece: Piece, why: str) -> None:
        self.given_up.append(GivenUp(piece.chunk, piece.low, piece.high, why))
        if self._settle(piece.chunk):
            self._parts.pop(piece.chunk, None)

    def _settle(self, chunk: Bounds) -> bool:
        """One piece fewer of a chunk; whether it was the last."""
        self._unsettled[chunk] -= 1
        if self._unsettled[chunk]:
            return False
        del self._unsettled[chunk]
        return True


def joined(chunk: Bounds, parts: dict[int, tuple[int, Values, Floors]]) -> Finished:
    """A chunk out of its parts."""
    low, high = chunk
    if len(parts) == 1:
        _, values, floors = parts[low]
        return low, high, values, floors
    ordered = [parts[start] for start in sorted(parts)]
    values = {name: torch.cat([part[1][name] for part in ordered]) for name in ordered[0][1]}
    floors = {name: max(part[2][name] for part in ordered) for name in ordered[0][2]}
    return low, high, values, floors
