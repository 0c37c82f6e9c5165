"""Which words a head would raise and lower most, for which word that it looks at: the largest entries of a matrix of
words by words that is never made.

The matrix is `reads @ writes`, [word, d_head] by [d_head, word], less each row's mean. Where it is small every entry is
looked at. Of a large one (50,000 words have 2.4 thousand million pairs) whole rows are: of words drawn at random, and
of those with the longest vectors; then, from the best targets of these and the longest targets, in turns
each target's best source and each source's best target, until the best pairs no longer change: then no other target is
better for the best source and no other source for its target. Cost: words x d_head products for each row or column, a
few hundred to a few thousand of them. Limits: a search of a large matrix may miss a pair that no such word leads to;
the share of words that raise themselves most is then that of the drawn ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = 2**33
"""Up to so many products every pair is looked at."""
DRAWN = 2**31
"""About so many products go into the rows that are drawn."""
LEAST = 256
BEAM = 64
"""Rows or columns in each turn of the search."""
TURNS = 12
ROWS = 512
NUMBERS = 2**26
"""Entries of the matrix that are there at a time."""


@dataclass(frozen=True, eq=False)
class WordPairs:
    """(source, target, value) [rank, 3], the share of `looked` words that raise themselves most, and how many those
    are."""

    promoted: Tensor
    suppressed: Tensor
    own: Tensor
    looked: int


def word_pairs(reads: Tensor, writes: Tensor, keep: int, *, seed: int = 0) -> WordPairs:
    """The `keep` largest and smallest entries of `reads @ writes`, less the rows' means."""
    words, width = reads.shape
    writes = (writes - writes.mean(1, keepdim=True)).float()
    found = _Found(reads.float(), writes, keep)
    if words * words * width <= EVERY:
        drawn = torch.arange(words)
    else:
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(words, generator=random)[: max(LEAST, DRAWN // (words * width))].sort().values
    starts = found.look(drawn)
    own = torch.tensor(found.own / len(drawn)).double()
    if len(drawn) < words:
        more = found.look(found.reads.norm(dim=1).topk(len(drawn)).indices)
        long = found.writes.norm(dim=0).topk(BEAM).indices
        for sign in (1, -1):
            found.climb(sign, torch.unique(torch.cat([starts[sign], more[sign], long])))
    return WordPairs(found.best[1], found.best[-1], own, len(drawn))


class _Found:
    """The best pairs so far, by sign."""

    def __init__(self, reads: Tensor, writes: Tensor, keep: int) -> None:
        self.reads, self.writes, self.keep = reads, writes, keep
        self.best = {sign: torch.zeros(0, 3, dtype=torch.double, device=reads.device) for sign in (1, -1)}
        self.every = torch.arange(len(reads), device=reads.device)
        self.own = 0

    def look(self, sources: Tensor) -> dict[int, Tensor]:
        """Take the rows of these words in; by sign, the best targets of the best of them."""
        best: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], -1: []}
        for at in sources.split(max(1, min(ROWS, NUMBERS // len(self.reads)))):
            at = at.to(self.reads.device)
            some = self.reads[at] @ self.writes
            low, high = some.aminmax(dim=1)
            self.own += int(((some.gather(1, at[:, None])[:, 0] >= high) & (high > 0)).sum())
            for sign, ends in ((1, high), (-1, -low)):
                rows = ends.topk(min(max(BEAM, self.keep), len(at))).indices
                self._take(sign, sign * some[rows[: max(1, self.keep)]], at[rows[: max(1, self.keep)]], self.every)
                best[sign].append((ends[rows], (sign * some[rows]).argmax(1)))
        found = {sign: [torch.cat(one) for one in zip(*some, strict=True)] for sign, some in best.items()}
        return {
            sign: torch.unique(targets[ends.topk(min(BEAM, len(ends))).indices])
            for sign, (ends, targets) in found.items()
        }

    def climb(self, sign: int, targets: Tensor) -> None:
        """Best sources of the best targets, best targets of those, and so on."""
        for _ in range(TURNS):
            before = self.best[sign]
            sources = self._best(sign, self.writes[:, targets].T @ self.reads.T, targets, turned=True)
            targets = self._best(sign, self.reads[sources] @ self.writes, sources, turned=False)
            if torch.equal(before[:, :2], self.best[sign][:, :2]):
                return

    def _best(self, sign: int, values: Tensor, here: Tensor, *, turned: bool) -> Tensor:
        """Take in the values of some words by all; returns those of all that are best for the best of these, and for
        any of them."""
        ends = (sign * values).amax(1)
        rows = ends.topk(min(max(1, self.keep), len(here))).indices
        self._take(sign, sign * values[rows], here[rows], self.every, turned=turned)
        return torch.unique((sign * values).argmax(1))

    def _take(self, sign: int, values: Tensor, sources: Tensor, targets: Tensor, *, turned: bool = False) -> None:
        """Keep the best of these values [source, target] (`turned`: of targets by sources), each pair once."""
        top, flat = values.flatten().topk(min(self.keep, values.numel()))
        one, other = sources[flat // values.shape[1]], targets[flat % values.shape[1]]
        source, target = (other, one) if turned else (one, other)
        both = torch.cat([self.best[sign], torch.stack([source.double(), target.double(), sign * top.double()], 1)])
        both = both[(sign * both[:, 2]).argsort(descending=True, stable=True)]
        pair = both[:, 0] * len(self.reads) + both[:, 1]
        first = (pair[:, None] == pair[None]).int().argmax(1) == torch.arange(len(pair), device=pair.device)
        self.best[sign] = both[first][: self.keep]
