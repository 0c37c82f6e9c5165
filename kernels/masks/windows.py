"""Masks of windows: a grid cut into windows with a shift and a halo, blocks a power of two apart, tokens outside.

`Windows` with a shift is Swin's (Liu et al. 2021, arXiv 2103.14030), with a halo HaloNet's (Vaswani et al. 2021, arXiv
2103.12731); windows that differ from head to head, as in VSA (arXiv 2204.08446), are `PerHead` of them. `PowerBlocks`
is PowerAttention (arXiv 2503.03588).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError
from interp.kernels.masks.base import Mask, block_class, four, positive

Each = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Windows(Mask):
    """A grid of tokens in row-major order cut into windows of `size` points; every argument may be one number or one
    per axis.

    Queries of a window see its keys, and those up to `halo` points around it. With a `shift` the cuts move by so many
    points towards the start; what is left over at both ends are windows of their own. A grid of one axis may be of any
    length, 0 for that of the call.
    """

    grid: tuple[int, ...]
    size: Each
    shift: Each = 0
    halo: Each = 0

    def __post_init__(self) -> None:
        if not all(n >= 0 for n in self.grid) or (len(self.grid) > 1 and 0 in self.grid):
            raise AttentionError(f"windows need a grid of at least one point for each axis; got {self!r}")
        for _, size, shift, halo in self.axes():
            positive("the windows' size", size)
            if not (0 <= shift < size and halo >= 0):
                raise AttentionError(f"windows need 0 <= shift < size and halo >= 0 on every axis; got {self!r}")

    def axes(self) -> list[tuple[int, int, int, int]]:
        """Per axis: points, size, shift, halo."""
        n = len(self.grid)
        each = [x if isinstance(x, tuple) else (x,) * n for x in (self.size, self.shift, self.halo)]
        if n == 0 or any(len(x) != n for x in each):
            raise AttentionError(f"windows on a grid of {n} axes need one value or {n} per argument; got {self!r}")
        return list(zip(self.grid, *each, strict=True))

    def check(self, queries: int, keys: int) -> None:
        points = math.prod(self.grid)
        if points and (keys != points or queries > keys):
            raise AttentionError(
                f"windows on grid {self.grid} have {points} tokens, but the call has {queries} queries and {keys} keys"
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        seen = torch.ones(len(i), len(j), dtype=torch.bool, device=i.device)
        after = math.prod(self.grid)
        for points, size, shift, halo in self.axes():
            after = after // points if points else 1
            a, b = ((x // after) % points if points else x for x in (i, j))
            low = (a + shift) // size * size - shift
            seen &= (b >= low[:, None] - halo) & (b < low[:, None] + size + halo)
        return four(seen)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        _, size, shift, halo = self.axes()[0]
        after = math.prod(self.grid[1:])
        first, last = ((x // after + shift) // size * size - shift for x in (low, high))
        return max(0, min((first - halo) * after, keys)), min(keys, (last + size + halo) * after)


@dataclass(frozen=True, eq=False)
class PowerBlocks(Mask):
    """Blocks of `block` tokens: the own one and those nearer than `window`, those a power of two away, and the first,
    on both sides."""

    block: int = 256
    window: int = 5

    def __post_init__(self) -> None:
        positive("the block", self.block)
        positive("the window of blocks", self.window)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] // self.block - j[None, :] // self.block).abs()
        return four((apart < self.window) | ((apart & (apart - 1)) == 0) | (j[None, :] < self.block))

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        """By counting what is seen of its own blocks, which are seen whole or not at all."""
        ends = [x // self.block for x in (q_low, q_high + self.block, k_low, k_high + self.block)]
        own = (torch.arange(int(x.max()), device=x.device) * self.block for x in ends[1::2])
        seen = self.visible(*own)[0, 0].cumsum(0).cumsum(1)
        before = torch.nn.functional.pad(seen, (1, 0, 1, 0))
        a, b, c, d = ends[0][:, None], ends[1][:, None], ends[2], ends[3]
        count = before[b, d] - before[a, d] - before[b, c] + before[a, c]
        return four(block_class(count == (b - a) * (d - c), count == 0))


@dataclass(frozen=True, eq=False)
class After(Mask):
    """A mask of the tokens from number `first` on; those before it, such as a class token, see and are seen by all."""

    first: int
    mask: Mask

    def __post_init__(self) -> None:
        positive("the number of tokens outside of the mask", self.first)

    def check(self, queries: int, keys: int) -> None:
        self.mask.check(max(0, min(queries, keys - self.first)), keys - self.first)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        inner = self.mask.visible((i - self.first).clamp(min=0), (j - self.first).clamp(min=0))
        return inner | four((i[:, None] < self.first) | (j[None, :] < self.first))
