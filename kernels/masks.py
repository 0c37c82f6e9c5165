"""Which query sees which key, said in symbols instead of an N x N tensor.

A mask is a small frozen object. Positions are those of the keys: query row r of Sq stands at `i = r + Sk - Sq`
(bottom-right alignment, so the last query is the last key), and `visible(i, j)` answers for any rows and keys, which is
how every implementation asks for one block at a time. `dense(Sq, Sk)` is the oracle, `classes(...)` says which blocks
are empty, partial or full so that fast versions can skip, `reach(...)` bounds the keys that some rows can see. Masks
combine with `&` and `|`, compare by content, and differ between heads where `PerHead` or a table with a head axis says
so.

Neighbourhoods follow Generalized Neighborhood Attention (Hassani et al., arXiv 2504.16922). `Strided` is the pattern of
Sparse Transformers (arXiv 1904.10509), `Power` that of LogSparse (arXiv 1907.00235).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError

EMPTY, PARTIAL, FULL = 0, 1, 2


def content(value: object) -> object:
    """Something hashable that is equal when the value's content is."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        return (str(flat.dtype), tuple(flat.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, list | tuple):
        return tuple(map(content, value))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return value


class ByContent:
    """Equality and hash of a frozen dataclass that holds tensors."""

    def _content(self) -> tuple[object, ...]:
        return (type(self), *(content(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByContent) and type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())


class Mask(ByContent):
    """What all masks can do; a new one needs `visible` only, the rest is speed."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Bool [1 or batch, 1 or head, len(i), len(j)]: whether the query at position i sees key j."""
        raise NotImplementedError

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        """What is added to the scores, for masks that carry a bias as well."""
        return None

    def check(self, queries: int, keys: int) -> None:
        """Raise unless the mask fits this many queries and keys."""

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        """Keys [a, b) outside which no query at positions low..high sees anything."""
        return 0, keys

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        """Keys [a, b) that every query at positions low..high certainly sees; empty where that is not known."""
        return 0, 0

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        """The keys [a, b) that each query at positions i sees, [1 or batch, len(i)], where they are one run of keys."""
        return None

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        """Class of each block [1 or batch, 1 or head, len(q_low), len(k_low)]; bounds are inclusive positions."""
        rows = [self._row_of_blocks(int(a), int(b), k_low, k_high) for a, b in zip(q_low, q_high, strict=True)]
        return torch.cat(rows, dim=2)

    def _row_of_blocks(self, low: int, high: int, k_low: Tensor, k_high: Tensor) -> Tensor:
        device = k_low.device
        found = []
        for a, b in zip(k_low.tolist(), k_high.tolist(), strict=True):
            seen = self.visible(torch.arange(low, high + 1, device=device), torch.arange(a, b + 1, device=device))
            found.append(_class(seen.flatten(2).all(-1), ~seen.flatten(2).any(-1)))
        return torch.stack(found, dim=-1).unsqueeze(2)

    def dense(self, queries: int, keys: int, *, device: torch.device | str = "cpu") -> Tensor:
        """The whole mask, Bool [1 or batch, 1 or head, queries, keys]."""
        self.check(queries, keys)
        i = torch.arange(queries, device=device) + keys - queries
        seen = self.visible(i, torch.arange(keys, device=device))
        return seen.expand(seen.shape[0], seen.shape[1], queries, keys)

    def classes(self, queries: int, keys: int, *, rows: int = 128, columns: int = 128) -> Tensor:
        """EMPTY, PARTIAL or FULL per block; combined masks may call PARTIAL what is empty or full, never otherwise."""
        self.check(queries, keys)
        q_low, q_high = _bounds(queries, rows, keys - queries)
        return self.blocks(q_low, q_high, *_bounds(keys, columns, 0))

    def __and__(self, other: Mask) -> Mask:
        return And((self, other))

    def __or__(self, other: Mask) -> Mask:
        return Or((self, other))


def _bounds(length: int, size: int, offset: int) -> tuple[Tensor, Tensor]:
    low = torch.arange(0, length, size)
    return low + offset, (low + size - 1).clamp(max=length - 1) + offset


def _class(full: Tensor, empty: Tensor) -> Tensor:
    return torch.where(full, FULL, torch.where(empty, EMPTY, PARTIAL)).to(torch.int8)


def _within(low: int, high: int, keys: int) -> tuple[int, int]:
    low, high = max(low, 0), min(high, keys)
    return (low, high) if low < high else (0, 0)


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AttentionError(f"{name} must be an integer of at least 1; got {value!r}")


def _four(x: Tensor) -> Tensor:
    return x[(None,) * (4 - x.dim())]


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
        return _four(i[:, None] >= j[None, :])

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, max(0, min(keys, high + 1))

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        return torch.zeros_like(i)[None], (i + 1).clamp(0, keys)[None]

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return 0, max(0, min(keys, low + 1))

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return _four(_class(q_low[:, None] >= k_high, q_high[:, None] < k_low))


@dataclass(frozen=True, eq=False)
class Window(Mask):
    """Keys nearer than n on either side; `Causal() & Window(n)` is a sliding window of n keys, the query's own
    included.
    """

    n: int

    def __post_init__(self) -> None:
        _positive("the window", self.n)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return _four((i[:, None] - j[None, :]).abs() < self.n)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return min(max(low - self.n + 1, 0), keys), max(0, min(high + self.n, keys))

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        return (i - self.n + 1).clamp(0, keys)[None], (i + self.n).clamp(0, keys)[None]

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return _within(high - self.n + 1, low + self.n, keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        least, most = q_low[:, None] - k_high, q_high[:, None] - k_low
        return _four(_class((least > -self.n) & (most < self.n), (least >= self.n) | (most <= -self.n)))


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """The first n keys, seen by every query; a prefix language model is `Causal() | Prefix(n)`. n may be a tensor
    [batch].
    """

    n: int | Tensor

    def __post_init__(self) -> None:
        if int(torch.as_tensor(self.n).min()) < 0:
            raise AttentionError(f"a prefix has at least 0 keys; got {self.n!r}")

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
        return _class(k_high < n, k_low >= n).expand(-1, 1, len(q_low), -1)


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
        return _class(full, (a_high < b_low) | (b_high < a_low) | (a_high < 0) | (b_high < 0))[:, None]


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
        if self.side not in ("left", "right") or self.lengths.dim() != 1 or int(self.lengths.min()) < 0:
            raise AttentionError(f"padding is lengths [batch] of at least 0 and side 'left' or 'right'; got {self!r}")
        if self.side == "left" and self.keys is None:
            raise AttentionError(
                "padding on the left needs to know how many keys there are: Padding(lengths, 'left', keys)"
            )

    def check(self, queries: int, keys: int) -> None:
        if int(self.lengths.max()) > keys or self.keys not in (None, keys):
            raise AttentionError(f"padding for {self.keys or int(self.lengths.max())} keys, but the call has {keys}")

    def _span(self, device: torch.device) -> tuple[Tensor, Tensor]:
        n = self.lengths.to(device).reshape(-1, 1, 1, 1)
        if self.side == "right":
            return torch.zeros_like(n), n
        return (self.keys or 0) - n, torch.full_like(n, self.keys or 0)

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
        return _within(int(first.max()), int(last.min()), keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        low, high = self._span(k_low.device)
        full, empty = (k_low >= low) & (k_high < high), (k_low >= high) | (k_high < low)
        return _class(full, empty).expand(-1, 1, len(q_low), -1)


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
                _positive(f"the neighbourhood's {name}", value)
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
        return _four(seen)

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
        _positive("the dilated window", self.n)
        _positive("the dilation", self.dilation)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return _four((apart % self.dilation == 0) & (apart < self.n * self.dilation))

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return Window(self.n * self.dilation).reach(low, high, keys)


@dataclass(frozen=True, eq=False)
class Strided(Mask):
    """The last `stride` positions and every `stride`-th one, on both sides."""

    stride: int

    def __post_init__(self) -> None:
        _positive("the stride", self.stride)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return _four((apart < self.stride) | (apart % self.stride == 0))


@dataclass(frozen=True, eq=False)
class Power(Mask):
    """The own position and those a power of two away, on both sides."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        apart = (i[:, None] - j[None, :]).abs()
        return _four((apart & (apart - 1)) == 0)


@dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """A table of blocks of `size` tokens: Bool [query block, key block], [head, ., .] or [batch, head, ., .]."""

    table: Tensor
    size: int = 64

    def __post_init__(self) -> None:
        _positive("the block size", self.size)
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
        return _four(self.table.to(i.device)[..., i // self.size, :][..., j // self.size])


@dataclass(frozen=True, eq=False)
class PerHead(Mask):
    """One mask per query head."""

    masks: tuple[Mask, ...]

    def check(self, queries: int, keys: int) -> None:
        for mask in self.masks:
            mask.check(queries, keys)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return _heads([m.visible(i, j) for m in self.masks])

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        found = [m.additive(i, j) for m in self.masks]
        if all(f is None for f in found):
            return None
        zero = torch.zeros(1, 1, len(i), len(j), device=i.device)
        return _heads([zero if f is None else f for f in found])

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return _hull([m.reach(low, high, keys) for m in self.masks])

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return _heads([m.blocks(q_low, q_high, k_low, k_high) for m in self.masks])


def _heads(parts: Sequence[Tensor]) -> Tensor:
    if any(p.shape[1] != 1 for p in parts):
        raise AttentionError("a mask inside PerHead must not differ between heads itself")
    batch = max(p.shape[0] for p in parts)
    return torch.cat([p.expand(batch, 1, *p.shape[2:]) for p in parts], dim=1)


def _hull(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    real = [s for s in spans if s[1] > s[0]]
    return (min(s[0] for s in real), max(s[1] for s in real)) if real else (0, 0)


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
        whole = _four(self.tensor)
        rows = i - (whole.shape[-1] - whole.shape[-2]) if whole.shape[-2] > 1 else torch.zeros_like(i)
        return _take(_take(whole, rows, 2), j, 3)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        part = self._part(i, j)
        return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2

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


@dataclass(frozen=True, eq=False)
class And(Mask):
    """Visible where all are; biases add."""

    masks: tuple[Mask, ...]

    def check(self, queries: int, keys: int) -> None:
        for mask in self.masks:
            mask.check(queries, keys)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        seen = self.masks[0].visible(i, j)
        for mask in self.masks[1:]:
            seen = seen & mask.visible(i, j)
        return seen

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        found = [a for m in self.masks if (a := m.additive(i, j)) is not None]
        return sum(found[1:], found[0]) if found else None

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        spans = [m.reach(low, high, keys) for m in self.masks]
        return max(s[0] for s in spans), min(s[1] for s in spans)

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        found = [m.interval(i, keys) for m in self.masks]
        if any(f is None for f in found):
            return None
        low, high = zip(*(f for f in found if f is not None), strict=True)
        first, last = low[0], high[0]
        for a, b in zip(low[1:], high[1:], strict=True):
            first, last = torch.maximum(first, a), torch.minimum(last, b)
        return first, torch.maximum(first, last)

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        spans = [m.sure(low, high, keys) for m in self.masks]
        return _within(max(s[0] for s in spans), min(s[1] for s in spans), keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        parts = torch.broadcast_tensors(*(m.blocks(q_low, q_high, k_low, k_high) for m in self.masks))
        return torch.stack(parts).amin(0)


@dataclass(frozen=True, eq=False)
class Or(Mask):
    """Visible where any is; not for masks that carry a bias."""

    masks: tuple[Mask, ...]

    def check(self, queries: int, keys: int) -> None:
        for mask in self.masks:
            mask.check(queries, keys)

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        seen = self.masks[0].visible(i, j)
        for mask in self.masks[1:]:
            seen = seen | mask.visible(i, j)
        return seen

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        if any(m.additive(i[:1], j[:1]) is not None for m in self.masks):
            raise AttentionError("a mask with biases has no meaning under `|`; give it as Bool, or combine with `&`")
        return None

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return _hull([m.reach(low, high, keys) for m in self.masks])

    def interval(self, i: Tensor, keys: int) -> tuple[Tensor, Tensor] | None:
        found = [m.interval(i, keys) for m in self.masks]
        if any(f is None or bool(f[0].any()) for f in found):
            return None
        first, last = found[0] or (i, i)
        for part in found[1:]:
            last = torch.maximum(last, part[1]) if part is not None else last
        return first.expand_as(last), last

    def sure(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return max((m.sure(low, high, keys) for m in self.masks), key=lambda s: s[1] - s[0])

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        parts = torch.broadcast_tensors(*(m.blocks(q_low, q_high, k_low, k_high) for m in self.masks))
        return torch.stack(parts).amax(0)


def as_mask(mask: Mask | Tensor | None) -> Mask:
    """The mask in symbols: None is Full, a tensor is Dense."""
    if mask is None:
        return Full()
    if isinstance(mask, Tensor):
        return Dense(mask)
    if not isinstance(mask, Mask):
        raise AttentionError(f"a mask is None, a tensor or an interp.kernels.masks.Mask; got {type(mask).__name__}")
    return mask
