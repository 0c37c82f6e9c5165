"""What all masks share: equality by content, the questions a mask answers, classes of blocks, `&` and `|`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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


SHORTCUTS = ("additive", "reach", "sure", "interval", "blocks")


def _owner(cls: type, name: str) -> type:
    """The class that a method comes from."""
    return next(c for c in cls.__mro__ if name in vars(c))


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors that a mask or an edit holds, in masks within masks too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, ByContent):
        for part in vars(value).values():
            yield from tensors(part)


class Mask(ByContent):
    """What all masks can do; a new one needs `visible` only, the rest is speed."""

    def __init_subclass__(cls) -> None:
        """Refuse a mask that says anew what is visible and keeps shortcuts of another, which speak of other keys."""
        super().__init_subclass__()
        kept = [n for n in SHORTCUTS if _owner(cls, n) not in (cls, Mask)]
        if "visible" in vars(cls) and kept:
            raise AttentionError(
                f"mask {cls.__name__} has its own `visible` and `{kept[0]}` of {_owner(cls, kept[0]).__name__}: write "
                f"{', '.join(kept)} as well, or derive it from Mask"
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Bool [1 or batch, 1 or head, len(i), len(j)]: whether the query at position i sees key j."""
        raise AttentionError(f"mask {type(self).__name__} does not say what is visible")

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
            found.append(block_class(seen.flatten(2).all(-1), ~seen.flatten(2).any(-1)))
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
        q_low, q_high = bounds(queries, rows, keys - queries)
        return self.blocks(q_low, q_high, *bounds(keys, columns, 0))

    def __and__(self, other: Mask) -> Mask:
        return And((self, other))

    def __or__(self, other: Mask) -> Mask:
        return Or((self, other))


def bounds(length: int, size: int, offset: int) -> tuple[Tensor, Tensor]:
    """First and last index of each run of `size`."""
    low = torch.arange(0, length, size)
    return low + offset, (low + size - 1).clamp(max=length - 1) + offset


def block_class(full: Tensor, empty: Tensor) -> Tensor:
    """EMPTY, PARTIAL or FULL from two Bool tensors."""
    return torch.where(full, FULL, torch.where(empty, EMPTY, PARTIAL)).to(torch.int8)


def within(low: int, high: int, keys: int) -> tuple[int, int]:
    """The span cut to the keys there are; (0, 0) where nothing is left."""
    low, high = max(low, 0), min(high, keys)
    return (low, high) if low < high else (0, 0)


def around(low: int, high: int, n: int, keys: int) -> tuple[int, int]:
    """Keys nearer than n to some query at positions low..high."""
    return min(max(low - n + 1, 0), keys), max(0, min(high + n, keys))


def positive(name: str, value: int) -> None:
    """Raise unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AttentionError(f"{name} must be an integer of at least 1; got {value!r}")


def four(x: Tensor) -> Tensor:
    """The same with leading axes up to four."""
    return x[(None,) * (4 - x.dim())]


@dataclass(frozen=True, eq=False)
class OfMasks(Mask):
    """What masks made of other masks share."""

    masks: tuple[Mask, ...]

    def check(self, queries: int, keys: int) -> None:
        for mask in self.masks:
            mask.check(queries, keys)

    def _classes(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        """Those of each block, [mask, ...]."""
        return torch.stack(torch.broadcast_tensors(*(m.blocks(q_low, q_high, k_low, k_high) for m in self.masks)))


@dataclass(frozen=True, eq=False)
class And(OfMasks):
    """Visible where all are; biases add."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return functools.reduce(torch.logical_and, (m.visible(i, j) for m in self.masks))

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
        return within(max(s[0] for s in spans), min(s[1] for s in spans), keys)

    def blocks(self, q_low: Tensor, q_high: Tensor, k_low: Tensor, k_high: Tensor) -> Tensor:
        return self._classes(q_low, q_high, k_low, k_high).amin(0)


@dataclass(frozen=True, eq=False)
class Or(OfMasks):
    """Visible where any is; not for masks that carry a bias."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return functools.reduce(torch.logical_or, (m.visible(i, j) for m in self.masks))

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        if any(m.additive(i[:1], j[:1]) is not None for m in self.masks):
            raise AttentionError("a mask with biases has no meaning under `|`; give it as Bool, or combine with `&`")
        return None

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return hull([m.reach(low, high, keys) for m in self.masks])

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
        return self._classes(q_low, q_high, k_low, k_high).amax(0)


def hull(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest span that holds all of these."""
    real = [s for s in spans if s[1] > s[0]]
    return (min(s[0] for s in real), max(s[1] for s in real)) if real else (0, 0)
