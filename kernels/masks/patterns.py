"""Masks of sparse patterns: neighbourhoods on grids, dilated, strided and power-of-two positions, tables of blocks.

Neighbourhoods follow Generalized Neighborhood Attention (Hassani et al., arXiv 2504.16922). `Strided` is the pattern of
Sparse Transformers (arXiv 1904.10509), `Power` that of LogSparse (arXiv 1907.00235).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError
from interp.kernels.masks.base import Mask, around, four, positive


@dataclass(frozen=True, eq=False)
class Neighborhood(Mask):
    """The window around each point of a grid, tokens in row-major order; every argument may be one number or one per
    axis.

    Queries of a group of `stride` points share the window of the group's leader, its middle point (its last one on a
    causal axis). Windows are pushed back inside the grid rather than cut, except on causal axes. With dilation d an
    axis falls apart into d interleaved sub-grids that do not see each other.
    """

    grid: tuple[int, ...]
    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    causal: bool | tuple[bool, ...] = False

    def __post_init__(self) -> None:
        for size, window, stride, dilation, _ in self.axes():
            for name, value in (("grid", size), ("window", window), ("stride", stride), ("dilation", dilation)):
                positive(f"the neighbourhood's {name}", value)
            if window * dilation > size or stride > window:
                raise AttentionError(
                    f"a neighbourhood needs window * dilation <= grid and stride <= window on every axis; got {self!r}"
                )

    def axes(self) -> list[tuple[int, int, int, int, bool]]:
        """Per axis: size, window, stride, dilation, causal."""
        n = len(self.grid)
        each = [x if isinstance(x, tuple) else (x,) * n for x in (self.window, self.stride, self.dilation, self.causal)]
        if n == 0 or any(len(x) != n for x in each):
            raise AttentionError(
                f"a neighbourhood on a grid of {n} axes needs one value or {n} per argument; got {self!r}"
            )
        return list(zip(self.grid, *each, strict=True))

    def check(self, queries: int, keys: int) -> None:
        if keys != math.prod(self.grid) or queries > keys:
            raise AttentionError(
                f"a neighbourhood on grid {self.grid} has {math.prod(self.grid)} tokens, but the call has {queries} "
                f"queries and {keys} keys"
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        seen = torch.ones(len(i), len(j), dtype=torch.bool, device=i.device)
        after = math.prod(self.grid)
        for size, window, stride, dilation, causal in self.axes():
            after //= size
            a, b = (i // after) % size, (j // after) % size
            low, high = _window(a, size, window, stride, dilation, causal)
            near = (b[None] // dilation >= low[:, None]) & (b[None] // dilation < high[:, None])
            seen &= near & (a[:, None] % dilation == b[None] % dilation)
        return four(seen)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        size, window, stride, dilation, causal = self.axes()[0]
        after = math.prod(self.grid[1:])
        a = torch.arange(low // after, high // after + 1).clamp(max=size - 1)
        first, last = _window(a, size, window, stride, dilation, causal)
        return int((first * dilation).min()) * after, min(keys, int((last * dilation).max()) * after)


def _window(a: Tensor, size: int, window: int, stride: int, dilation: int, causal: bool) -> tuple[Tensor, Tensor]:
    """[low, high) of each query's window along one axis, in steps of its dilation group."""
    length = (size - a % dilation + dilation - 1) // dilation
    at = a // dilation
    group = at // stride * stride
    if causal:
        leader = torch.minimum(group + stride - 1, length - 1)
        return (leader - window + 1).clamp(min=0), at + 1
    leader = torch.minimum(group + stride // 2, length - 1)
    low = torch.minimum((leader - window // 2).clamp(min=0), length - window)
    return low, low + window


@dataclass(frozen=True, eq=False)
class Dilated(Mask):
    """Every d-th position, n of them on either side with the own one: i - j divisible by d and nearer than n d."""

    n: int
    dilation: int

    def __post_init__(self) -> None:
        positive("the dilated window", self.n)
        positive("the dilation", self.dilation)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return four((apart % self.dilation == 0) & (apart < self.n * self.dilation))

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return around(low, high, self.n * self.dilation, keys)


@dataclass(frozen=True, eq=False)
class Strided(Mask):
    """The last `stride` positions and every `stride`-th one, on both sides."""

    stride: int

    def __post_init__(self) -> None:
        positive("the stride", self.stride)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return four((apart < self.stride) | (apart % self.stride == 0))


@dataclass(frozen=True, eq=False)
class Power(Mask):
    """The own position and those a power of two away, on both sides."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return four((apart & (apart - 1)) == 0)


@dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """A table of blocks of `size` tokens: Bool [query block, key block], [head, ., .] or [batch, head, ., .]."""

    table: Tensor
    size: int = 64

    def __post_init__(self) -> None:
        positive("the block size", self.size)
        if self.table.dtype != torch.bool or self.table.dim() not in (2, 3, 4):
            raise AttentionError(
                f"a block table is Bool with 2 to 4 axes; got {self.table.dtype} {list(self.table.shape)}"
            )

    def check(self, queries: int, keys: int) -> None:
        needed = -(-keys // self.size)
        if queries > keys or tuple(self.table.shape[-2:]) != (needed, needed):
            raise AttentionError(
                f"{keys} keys in blocks of {self.size} need a table of {needed} x {needed} (queries come last); "
                f"got {list(self.table.shape[-2:])} for {queries} queries"
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return four(self.table.to(i.device)[..., i // self.size, :][..., j // self.size])
