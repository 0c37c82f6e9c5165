"""Which query sees which key, said in symbols instead of an N x N tensor.

A mask is a small frozen object. Positions are those of the keys: query row r of Sq is at `i = r + Sk - Sq`
(bottom-right alignment, so the last query is the last key), and `visible(i, j)` answers for any rows and keys, which is
how every implementation asks for one block at a time. `dense(Sq, Sk)` is the oracle, `classes(...)` says which blocks
are empty, partial or full so that fast versions can skip, `reach(...)` bounds the keys that some rows can see. Masks
combine with `&` and `|`, compare by content, and differ between heads where `PerHead` or a table with a head axis says
so. What they share is in `base.py`, sparse patterns are in `patterns.py`, windows in `windows.py`; all names can be had
from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError, known
from interp.kernels.masks.base import (
    EMPTY,
    FULL,
    PARTIAL,
    And,
    ByContent,
    Mask,
    OfMasks,
    Or,
    around,
    block_class,
    content,
    four,
    hull,
    positive,
    within,
)
from interp.kernels.masks.patterns import Blocks, Dilated, Neighborhood, Power, Strided
from interp.kernels.masks.windows import After, PowerBlocks, Windows

__all__ = [
    "EMPTY", "FULL", "PARTIAL", "After", "Alibi", "And", "Blocks", "ByContent", "Causal", "Dense", "Dilated",
    "Documents", "Full", "Mask", "Neighborhood", "Or", "Padding", "PerHead", "Power", "PowerBlocks", "Prefix",
    "Strided", "Window", "Windows", "as_mask", "content",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Full(Mask):
    """Every query sees every key."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=i.device).expand(1, 1, len(i), len(j))

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        return torch.zeros_like(i)[None], torch.full_like(i, keys)[None]

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, keys

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return torch.full((1, 1, len(q_low), len(k_low)), FULL, dtype=torch.int8)


@dataclass(frozen=True, eq=False)
class Causal(Mask):
    """Keys up to the query's own position."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return four(i[:, None] >= j[None, :])

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, max(0, min(keys, high + 1))

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        return torch.zeros_like(i)[None], (i + 1).clamp(0, keys)[None]

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, max(0, min(keys, low + 1))

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return four(block_class(q_low[:, None] >= k_high, q_high[:, None] < k_low))


@dataclass(frozen=True, eq=False)
class Window(Mask):
    """Keys nearer than n on either side; `Causal() & Window(n)` is a sliding window of n keys, the query's own
    included.
    """

    n: int

    def __post_init__(self) -> None:
        positive("the window", self.n)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return four((i[:, None] - j[None, :]).abs() < self.n)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return around(low, high, self.n, keys)

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        return (i - self.n + 1).clamp(0, keys)[None], (i + self.n).clamp(0, keys)[None]

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return within(high - self.n + 1, low + self.n, keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        least, most = q_low[:, None] - k_high, q_high[:, None] - k_low
        return four(block_class((least > -self.n) & (most < self.n), (least >= self.n) | (most <= -self.n)))


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """The first n keys, seen by every query; a prefix language model is `Causal() | Prefix(n)`. n may be a tensor
    [batch].
    """

    n: int | Tensor

    def __post_init__(self) -> None:
        n = torch.as_tensor(self.n)
        if n.is_floating_point() or int(n.min()) < 0:
            raise AttentionError(f"a prefix is a whole number, at least 0 keys; got {self.n!r}")

    def _n(self, device: torch.device) -> Tensor:
        return torch.as_tensor(self.n, device=device).reshape(-1, 1, 1, 1)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        seen = j[None, None, None, :] < self._n(i.device)
        return seen.expand(-1, 1, len(i), -1)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, min(keys, int(torch.as_tensor(self.n).max()))

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        n = self._n(i.device).reshape(-1, 1).clamp(max=keys)
        return torch.zeros_like(n).expand(-1, len(i)), n.expand(-1, len(i))

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, min(keys, int(torch.as_tensor(self.n).min()))

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        n = self._n(k_low.device)
        return block_class(k_high < n, k_low >= n).expand(-1, 1, len(q_low), -1)


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Queries see keys of their own document: ids [key] or [batch, key]; a negative id is padding, sees and is seen by
    none.
    """

    ids: Tensor

    def __post_init__(self) -> None:
        if self.ids.dim() not in (1, 2) or self.ids.dtype.is_floating_point:
            raise AttentionError(
                f"document ids are integers [key] or [batch, key]; got {self.ids.dtype} {list(self.ids.shape)}"
            )

    def check(self, queries: int, keys: int) -> None:
        if self.ids.shape[-1] != keys or queries > keys:
            raise AttentionError(
                f"document ids for {self.ids.shape[-1]} keys, but the call has {queries} queries and {keys} keys; "
                "ids name keys, and queries are the last of them"
            )

    def _ids(self, device: torch.device) -> Tensor:
        return self.ids.to(device).reshape(-1, self.ids.shape[-1])

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        ids = self._ids(i.device)
        a, b = ids[:, i, None], ids[:, None, j]
        return ((a == b) & (a >= 0))[:, None]

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        ids = self._ids(i.device)
        if bool((ids.diff(dim=1) < 0).any()) or int(ids.min()) < 0:
            return None
        own = ids[:, i].contiguous()
        return torch.searchsorted(ids, own), torch.searchsorted(ids, own, right=True)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        ids = self._ids(torch.device("cpu"))
        own = ids[:, low : high + 1]
        near = (ids >= own.amin(1, keepdim=True)) & (ids <= own.amax(1, keepdim=True)) & (ids >= 0)
        at = near.any(0).nonzero()
        return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        ids = self._ids(torch.device("cpu"))
        a_low, a_high = _extremes(ids, q_low, q_high)
        b_low, b_high = _extremes(ids, k_low, k_high)
        a_low, a_high, b_low, b_high = a_low[:, :, None], a_high[:, :, None], b_low[:, None], b_high[:, None]
        full = (a_low == a_high) & (a_low == b_low) & (b_low == b_high) & (a_low >= 0)
        return block_class(full, (a_high < b_low) | (b_high < a_low) | (a_high < 0) | (b_high < 0))[:, None]


def _extremes(ids: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    parts = [ids[:, a : b + 1] for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return torch.stack([p.amin(1) for p in parts], 1), torch.stack([p.amax(1) for p in parts], 1)


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Real keys only: lengths [batch] of keys that are not padding. Padding on the left says of how many keys."""

    lengths: Tensor
    side: str = "right"
    keys: int | None = None

    def __post_init__(self) -> None:
        whole = self.lengths.dim() == 1 and not self.lengths.is_floating_point() and int(self.lengths.min()) >= 0
        if self.side not in ("left", "right") or not whole:
            raise AttentionError(
                f"padding is whole lengths [batch] of at least 0 and side 'left' or 'right'; got {self!r}"
            )
        if self.side == "left" and self.keys is None:
            raise AttentionError(
                "padding on the left needs to know how many keys there are: Padding(lengths, 'left', keys)"
            )

    def check(self, queries: int, keys: int) -> None:
        if int(self.lengths.max()) > keys or self.keys not in (None, keys):
            raise AttentionError(f"padding for {self.keys or int(self.lengths.max())} keys, but the call has {keys}")

    def _span(self, device: torch.device) -> tuple[Tensor, Tensor]:
        n = self.lengths.to(device).reshape(-1, 1, 1, 1)
        end = torch.full_like(n, self.keys or 0)
        return known({"right": (torch.zeros_like(n), n), "left": (end - n, end)}, self.side, "the side of padding")

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        low, high = self._span(i.device)
        return ((j >= low) & (j < high)).expand(-1, 1, len(i), -1)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        first, last = self._span(torch.device("cpu"))
        return int(first.min()), int(last.max())

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        low, high = self._span(i.device)
        return low.reshape(-1, 1).expand(-1, len(i)), high.reshape(-1, 1).expand(-1, len(i))

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        first, last = self._span(torch.device("cpu"))
        return within(int(first.max()), int(last.min()), keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        low, high = self._span(k_low.device)
        full, empty = (k_low >= low) & (k_high < high), (k_low >= high) | (k_high < low)
        return block_class(full, empty).expand(-1, 1, len(q_low), -1)


@dataclass(frozen=True, eq=False)
class PerHead(OfMasks):
    """One mask per query head."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return _heads([m.visible(i, j) for m in self.masks])

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        found = [m.additive(i, j) for m in self.masks]
        if all(f is None for f in found):
            return None
        zero = torch.zeros(1, 1, len(i), len(j), device=i.device)
        return _heads([zero if f is None else f for f in found])

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return hull([m.reach(low, high, keys) for m in self.masks])

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return _heads([m.blocks(q_low, q_high, k_low, k_high) for m in self.masks])


def _heads(parts: Sequence[Tensor]) -> Tensor:
    if any(p.shape[1] != 1 for p in parts):
        raise AttentionError("a mask inside PerHead must not differ between heads itself")
    batch = max(p.shape[0] for p in parts)
    return torch.cat([p.expand(batch, 1, *p.shape[2:]) for p in parts], dim=1)


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """A tensor [1 or batch, 1 or head, 1 or query, key]: Bool, True where visible, or floating and added to the scores.

    Of a floating one, values at or below half the most negative number of its dtype (or -inf) hide, as masks built with
    `torch.finfo(dtype).min` mean them to; all others are biases.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.dim() not in (2, 4) or not (self.tensor.dtype == torch.bool or self.tensor.is_floating_point()):
            raise AttentionError(
                "a dense mask is Bool or floating, [query, key] or [batch, head, query, key]; got "
                f"{self.tensor.dtype} {list(self.tensor.shape)}"
            )

    def check(self, queries: int, keys: int) -> None:
        rows, columns = self.tensor.shape[-2:]
        if rows not in (1, queries) or columns != keys:
            raise AttentionError(f"a mask for {rows} queries and {columns} keys, but the call has {queries} and {keys}")

    def _part(self, i: Tensor, j: Tensor) -> Tensor:
        whole = four(self.tensor)
        rows = i - (whole.shape[-1] - whole.shape[-2]) if whole.shape[-2] > 1 else torch.zeros_like(i)
        return _take(_take(whole, rows, 2), j, 3)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        part = self._part(i, j)
        return part if part.dtype == torch.bool else ~(part <= torch.finfo(part.dtype).min / 2)

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        if self.tensor.dtype == torch.bool:
            return None
        part = self._part(i, j)
        return part.masked_fill(part <= torch.finfo(part.dtype).min / 2, 0.0)


def _take(x: Tensor, at: Tensor, axis: int) -> Tensor:
    """Index one axis, as a view where the indices are a run."""
    if len(at) and int(at[-1]) - int(at[0]) == len(at) - 1 and bool((at.diff() == 1).all()):
        return x.narrow(axis, int(at[0]), len(at))
    return x.index_select(axis, at)


@dataclass(frozen=True, eq=False)
class Alibi(Mask):
    """Sees everything and adds -slope |i - j| to the scores of each head (ALiBi, Press et al., arXiv 2108.12409)."""

    slopes: Tensor

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return Full().visible(i, j)

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        return -self.slopes.to(i.device).reshape(1, -1, 1, 1) * (i[:, None] - j[None, :]).abs()

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, keys

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return Full().blocks(q_low, q_high, k_low, k_high)


def as_mask(mask: Mask | Tensor | None) -> Mask:
    """The mask in symbols: None is Full, a tensor is Dense."""
    if mask is None:
        return Full()
    if isinstance(mask, Tensor):
        return Dense(mask)
    if not isinstance(mask, Mask):
        raise AttentionError(
            f"a mask is None, a tensor or an interp.kernels.masks.symbols.Mask; got {type(mask).__name__}"
        )
    return mask
