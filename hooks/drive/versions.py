"""Changed versions of a few prompts, as values: what each changes, and many of them row by row.

A version is one prompt with changes; it is driven from the first column that they can reach. Versions with the same
columns are rows: their residuals are in one buffer, a stretch of them goes through a block as tokens one after the
other, and attention sees them as a rectangle. Which prompts and columns they are is kept on the CPU, whatever the model
is on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Change:
    """New values at one component of one layer: `values` [prompt, column, ...] at the columns where `where` is true."""

    layer: int
    component: str
    values: Tensor
    where: Tensor
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None

    def hits(self, prompts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """What changes in rows of these prompts and columns: numbers of tokens, row by row, and their new values."""
        row, column = self.where[prompts[:, None], columns].nonzero(as_tuple=True)
        return row * len(columns) + column, self.values[prompts[row], columns[column]]

    def put(self, x: Tensor, prompts: Tensor, columns: Tensor, at: int) -> None:
        """Write it into the tokens x [token, ...] that begin at `at`."""
        tokens, values = self.hits(prompts, columns)
        tokens, values = tokens + at, values.to(x)
        some = self.heads if self.units is None else self.units
        if some is None:
            x[tokens] = values
        else:
            index = torch.tensor(some)
            x[tokens[:, None], index] = values[:, index]


@dataclass(frozen=True, eq=False)
class Version:
    """One changed version of one prompt; `number` says which question it answers."""

    number: int
    prompt: int
    changes: tuple[Change, ...] = ()
    start: int = 0
    layer: int = 0


@dataclass(eq=False)
class RowBatch:
    """Versions with the columns `start .. end`; their tokens begin at `at` of what goes through a block together."""

    prompts: Tensor
    start: int
    end: int
    versions: Sequence[Version] = ()
    hidden: Tensor | None = None
    """The residuals [row, column, d], in the order of the versions; those of a stretch are a view."""
    at: int = 0
    queries: Tensor | None = None
    """The columns, where only some of them are wanted."""

    @classmethod
    def of(cls, versions: Sequence[Version], end: int, like: Tensor) -> RowBatch:
        """All versions with one suffix, with a buffer for residuals [..., d] like these."""
        start = versions[0].start
        hidden = like.new_empty(len(versions), end - start, like.shape[-1])
        prompts = torch.tensor([version.prompt for version in versions])
        return cls(prompts, start, end, versions, hidden)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def columns(self) -> Tensor:
        if self.queries is not None:
            return self.queries
        return torch.arange(self.start, self.end)

    @property
    def width(self) -> int:
        return self.end - self.start if self.queries is None else len(self.queries)

    @property
    def tokens(self) -> int:
        return len(self) * self.width

    @cached_property
    def beat(self) -> int:
        """How many prompts there are: after as many rows they mostly come again in the same order."""
        return len({version.prompt for version in self.versions})

    @cached_property
    def _layers(self) -> list[int]:
        return [version.layer for version in self.versions]

    def until(self, layer: int) -> int:
        """How many have joined when a layer is run; they are in the order in which they do."""
        return bisect_right(self._layers, layer)

    def part(self, low: int, high: int, at: int = 0) -> RowBatch:
        """A stretch of the rows."""
        hidden = None if self.hidden is None else self.hidden[low:high]
        some = self.versions[low:high]
        return RowBatch(self.prompts[low:high], self.start, self.end, some, hidden, at, self.queries)

    def only(self, queries: Tensor, at: int) -> RowBatch:
        """The same rows, each with these columns alone."""
        return replace(self, queries=queries, at=at)

    def changes(self, layer: int) -> Iterator[tuple[Change, int, int]]:
        """What changes in a layer, each with the rows low .. high that it is the change of."""
        low = 0
        while low < len(self.versions):
            mine, high = self.versions[low].changes, low + 1
            while high < len(self.versions) and self.versions[high].changes is mine:
                high += 1
            yield from ((change, low, high) for change in mine if change.layer == layer)
            low = high

    def flat(self) -> Tensor:
        """The residuals token by token [token, d]."""
        assert self.hidden is not None
        hidden = self.hidden if self.queries is None else self.hidden[:, self.queries - self.start]
        return hidden.flatten(0, 1)

    def keep(self, made: Tensor) -> None:
        """Take over the residuals from those of everything that went through together [1, token, d]."""
        assert self.hidden is not None
        mine = made[0, self.at : self.at + self.tokens].unflatten(0, (len(self), -1))
        if self.queries is None:
            self.hidden[:] = mine
        else:
            self.hidden[:, self.queries - self.start] = mine
