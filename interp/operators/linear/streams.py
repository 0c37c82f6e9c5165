"""Sums over visible keys of products of features: in one pass over blocks, under any mask.

    y_i = sum over j seen by i of  d(i, j)  f(q_i) . g(k_j)  u_j,       d(i, j) = exp(-rate |i - j|) or 1

Keys are in blocks. A block that every row of a block of rows sees is read through the sum S = sum_j g(k_j) u_j^T alone,
which is carried from one block of rows to the next, and taken anew where these no longer see what is in it; one that
they see in part is read by its own matrix. Causal, full and padded calls are linear in length in time and memory, and
windows take as many blocks as they are wide. With a rate, the keys before and behind the rows are carried in two sums,
each in its direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.kernels.masks.base import EMPTY, FULL, bounds, tensors
from interp.kernels.masks.symbols import as_mask
from interp.operators.common.operator import alive, visible, wide

BLOCK = 128
"""Rows and keys that are taken together."""

Features = Callable[[Tensor], Tensor]
"""From some positions of q or k [example, head, position, d] to [example, head, position, feature]."""


def summed(part: Part, f: Features, g: Features, u: Tensor, *, rate: Tensor | None = None) -> Tensor:
    """y [example, head, query, dv]; u is [example, kv head, key, dv], rate [head]."""
    stream = Stream(part, f, g, u, rate)
    near = [stream.near(row) for row in range(stream.rows)]
    behind = stream.carried(range(stream.rows), stream.far if rate is None else stream.past, stream.row_low)
    found = [a if b is None else a + b for a, b in zip(near, behind, strict=True)]
    if rate is not None:
        ahead = stream.carried(range(stream.rows - 1, -1, -1), stream.future, stream.row_high)
        found = [a if b is None else a + b for a, b in zip(found, reversed(ahead), strict=True)]
    return torch.cat(found, 2)


class Stream:
    """One call in blocks of rows and keys."""

    def __init__(self, part: Part, f: Features, g: Features, u: Tensor, rate: Tensor | None) -> None:
        self.part, self.f, self.g, self.u, self.rate = part, f, g, u, rate
        queries, keys = part.q.shape[2], part.k.shape[2]
        self.mask, self.offset = as_mask(part.mask), keys - queries
        self.low, self.high = (x.tolist() for x in bounds(keys, BLOCK, 0))
        self.row_low, self.row_high = (x.tolist() for x in bounds(queries, BLOCK, self.offset))
        self.dead = ~alive(part) if any(True for _ in tensors(self.mask)) else None
        if self.dead is not None:
            self.full, self.empty = _classes(part, self.dead)
        else:
            found = self.mask.classes(queries, keys, rows=BLOCK, columns=BLOCK)
            self.full, self.empty = ((found == kind).flatten(0, 1).all(0) for kind in (FULL, EMPTY))

    @property
    def rows(self) -> int:
        return len(self.row_low)

    def far(self, row: int) -> list[int]:
        """Blocks that all rows of a block see."""
        return self.full[row].nonzero().flatten().tolist()

    def past(self, row: int) -> list[int]:
        return [n for n in self.far(row) if self.high[n] < self.row_low[row]]

    def future(self, row: int) -> list[int]:
        return [n for n in self.far(row) if self.low[n] > self.row_high[row]]

    def near(self, row: int) -> Tensor:
        """What a block of rows reads by its own matrix."""
        carried = set(self.far(row) if self.rate is None else self.past(row) + self.future(row))
        left = [n for n in range(len(self.low)) if not self.empty[row, n] and n not in carried]
        fq = self.features_of(row)
        y = fq.new_zeros(*fq.shape[:3], self.u.shape[-1])
        for first, last in _runs(left):
            y = y + self.by_matrix(row, fq, self.low[first], self.high[last] + 1)
        return y

    def features_of(self, row: int) -> Tensor:
        start, end = self.row_low[row] - self.offset, self.row_high[row] + 1 - self.offset
        return self.f(wide(self.part.q[:, :, start:end]))

    def keys_of(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        gk, u = self.g(wide(self.part.k[:, :, low:high])), wide(self.u[:, :, low:high])
        if self.dead is not None:
            gone = self.dead[:, :, low:high, None]
            if gone.shape[1] > 1 and gone.shape[1] != gk.shape[1]:
                gk = gk.repeat_interleave(gone.shape[1] // gk.shape[1], 1)
            gk = gk.masked_fill(gone, 0.0)
        return gk, u

    def by_matrix(self, row: int, fq: Tensor, low: int, high: int) -> Tensor:
        gk, u = self.keys_of(low, high)
        device = fq.device
        i = torch.arange(self.row_low[row], self.row_high[row] + 1, device=device)
        j = torch.arange(low, high, device=device)
        a = shared(fq, gk.transpose(-1, -2)).masked_fill(~self.mask.visible(i, j), 0.0)
        if self.rate is not None:
            a = a * torch.exp(-self.rate[:, None, None] * (i[:, None] - j).abs())
        return shared(a, u)

    def carried(
        self, order: Iterable[int], wanted: Callable[[int], list[int]], edges: list[int]
    ) -> list[Tensor | None]:
        """What blocks of rows read through sums, in an order in which these grow."""
        state, have = None, set[int]()
        at = 0
        found: list[Tensor | None] = []
        for row in order:
            every = wanted(row)
            edge = edges[row]
            if not every:
                found.append(None)
                continue
            if not have <= set(every):
                state, have = None, set()
            if state is not None and self.rate is not None:
                state = state * torch.exp(-self.rate * abs(edge - at))[:, None, None]
            at = edge
            for first, last in _runs([n for n in every if n not in have]):
                new = self.sum_of(self.low[first], self.high[last] + 1, edge)
                state = new if state is None else state + new
            have = set(every)
            assert state is not None
            fq = self.features_of(row)
            if self.rate is not None:
                i = torch.arange(self.row_low[row], self.row_high[row] + 1, device=fq.device)
                fq = fq * torch.exp(-self.rate[:, None, None] * (i - edge).abs()[:, None])
            found.append(shared(fq, state))
        return found

    def sum_of(self, low: int, high: int, edge: int) -> Tensor:
        """sum_j g(k_j) u_j^T of a run of keys, block after block, seen from an edge: [example, kv head or head,
        feature, dv]."""
        total = None
        for start in range(low, high, BLOCK):
            end = min(start + BLOCK, high)
            gk, u = self.keys_of(start, end)
            if self.rate is not None:
                j = torch.arange(start, end, device=gk.device)
                fade = torch.exp(-self.rate[:, None, None] * (edge - j).abs()[:, None])
                gk = gk.repeat_interleave(fade.shape[0] // gk.shape[1], 1) * fade
            heads = max(gk.shape[1], u.shape[1])
            gk, u = (x.repeat_interleave(heads // x.shape[1], 1) for x in (gk, u))
            new = gk.transpose(-1, -2) @ u
            total = new if total is None else total + new
        assert total is not None
        return total


def _classes(part: Part, dead: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [block of rows, block of keys]: those of which every example and head sees all, and nothing, that is not
    dead."""
    full, empty = [], []
    for rows in torch.arange(part.q.shape[2], device=part.q.device).split(BLOCK):
        seen = visible(part, rows)
        gone = dead[:, :, None]
        full.append(_of_blocks(seen | gone))
        empty.append(_of_blocks(~seen))
    return torch.stack(full).cpu(), torch.stack(empty).cpu()


def _of_blocks(holds: Tensor) -> Tensor:
    """Bool [block of keys]: where all of it holds."""
    every = holds.flatten(0, 2).all(0)
    whole = torch.nn.functional.pad(every, (0, -len(every) % BLOCK), value=True)
    return whole.unflatten(0, (-1, BLOCK)).all(1)


def shared(x: Tensor, y: Tensor) -> Tensor:
    """x [example, head, row, a] times y [example, kv head, a, b], which heads of a group share."""
    if x.shape[1] == y.shape[1]:
        return x @ y
    group = x.shape[1] // y.shape[1]
    together = x.unflatten(1, (y.shape[1], group)).flatten(2, 3)
    return (together @ y).unflatten(2, (group, -1)).flatten(1, 2)


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    start = 0
    for n in range(1, len(numbers) + 1):
        if n == len(numbers) or numbers[n] != numbers[n - 1] + 1:
            yield numbers[start], numbers[n - 1]
            start = n
