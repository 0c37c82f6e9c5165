"""Cells that could not be computed while all others were: named, with what was raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.kernels.errors import InterpError

SAID = 5
"""How many of them an error names."""


@dataclass(frozen=True)
class GivenUp:
    """Cells of a chunk that were given up, and why."""

    chunk: tuple[int, int]
    low: int
    high: int
    why: str

    def __str__(self) -> str:
        cells = f"cell {self.low}" if self.high == self.low + 1 else f"cells {self.low} to {self.high - 1}"
        return f"{cells}: {self.why}"


class CellsFailed(InterpError):
    """Cells that could not be computed."""

    def __init__(self, failed: Sequence[GivenUp], of: int, rest: str) -> None:
        super().__init__(failed, of, rest)
        self.failed, self.of, self.rest = tuple(failed), of, rest

    def __str__(self) -> str:
        count = sum(one.high - one.low for one in self.failed)
        more = f"; and {len(self.failed) - SAID} more" if len(self.failed) > SAID else ""
        return f"{count} of {self.of} cells failed: {'; '.join(map(str, self.failed[:SAID]))}{more}. {self.rest}"
