"""Heads that see the first keys and those near by only, in time and memory linear in length.

A block of rows sees two runs of keys, the first ones and those around the block. Only these are gathered, with what the
call's own mask, its bias and the other edits say of them; the block's own keys come last, where the kernels look for
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Dense, Full, Mask, PerHead, Prefix, Window, as_mask

ROWS = 512
"""At least so many rows are computed together."""


@dataclass(frozen=True, eq=False)
class Narrow:
    """These heads see keys before `end` [example] and those nearer than `recent`, of what the call lets them see."""

    end: Tensor
    recent: int
    heads: tuple[int, ...]
    rows: Tensor | None = None
    """Bool [example, query] it is about; None for all."""

    def mask(self, keys: int) -> Mask:
        """The same in symbols; rows it is not about see everything."""
        found: Mask = Prefix(self.end.clamp(min=0)) | Window(self.recent)
        if self.rows is None:
            return found
        return found | Dense((~self.rows)[:, None, :, None].expand(-1, -1, -1, keys))


@dataclass(frozen=True, eq=False)
class Example(Mask):
    """One example of a mask for a batch."""

    mask: Mask
    number: int

    def _own(self, x: Tensor) -> Tensor:
        return x[self.number : self.number + 1] if x.shape[0] > 1 else x

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return self._own(self.mask.visible(i, j))

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        found = self.mask.additive(i, j)
        return None if found is None else self._own(found)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return self.mask.reach(low, high, keys)


def narrowed(mask: Mask | None, heads: Sequence[int], views: Sequence[Narrow], keys: int) -> Mask | None:
    """What these heads see of a call's mask under the views that are about them."""
    own = [[view for view in views if head in view.heads] for head in heads]
    if not any(own):
        return mask
    each = [_all(view.mask(keys) for view in some) for some in own]
    alike = all(some == own[0] for some in own)
    return as_mask(mask) & (each[0] if alike else PerHead(tuple(each)))


def _all(masks: Any) -> Mask:
    found: Mask = Full()
    for mask in masks:
        found = mask if isinstance(found, Full) else found & mask
    return found


def together(heads: Sequence[int], views: Sequence[Narrow]) -> list[tuple[tuple[int, ...], Narrow | None]]:
    """The heads in runs that one call computes: those under one view of all rows, and all others."""
    runs: dict[int | None, list[int]] = {}
    for head in heads:
        own = [n for n, view in enumerate(views) if head in view.heads]
        runs.setdefault(own[0] if len(own) == 1 and views[own[0]].rows is None else None, []).append(head)
    return [(tuple(some), None if n is None else views[n]) for n, some in runs.items()]


def attended(
    q: Tensor, k: Tensor, v: Tensor, view: Narrow, edits: Sequence[kernel.Edit], arguments: Mapping[str, Any]
) -> Tensor:
    """z [example, head, query, d] of heads under a view, a block of rows after the other; k and v per query head."""
    size = max(ROWS, view.recent)
    parts = []
    for start in range(0, q.shape[2], size):
        at = torch.arange(start, min(start + size, q.shape[2]), device=q.device)
        keys = _keys(view, at + k.shape[2] - q.shape[2], k.shape[2])
        own = {**arguments, "mask": _block(arguments["mask"], at + k.shape[2] - q.shape[2], keys)}
        if own["bias"] is not None:
            own["bias"] = own["bias"].expand(-1, -1, q.shape[2], k.shape[2])[:, :, at][..., keys]
        inner = [_cut(edit, at, keys) for edit in edits]
        z = attend(q[:, :, at], k[:, :, keys], v[:, :, keys], edits=inner, **own).z
        assert z is not None
        parts.append(z)
    return torch.cat(parts, 2)


def _keys(view: Narrow, i: Tensor, keys: int) -> Tensor:
    """Every key that rows at positions i may see, their own last."""
    low, high = int(i[0]), int(i[-1]) + 1
    near = torch.arange(max(0, low - view.recent + 1), min(keys, high + view.recent - 1), device=i.device)
    first = torch.arange(min(int(view.end.max().clamp(min=0)), keys), device=i.device)
    every = torch.unique(torch.cat([first, near]))
    inside = (every >= low) & (every < high)
    return torch.cat([every[~inside], every[inside]])


def _block(mask: Mask | None, i: Tensor, keys: Tensor) -> Dense:
    """A mask's part for these rows and keys."""
    whole = as_mask(mask)
    seen, added = whole.visible(i, keys), whole.additive(i, keys)
    if added is None:
        return Dense(seen)
    seen, added = torch.broadcast_tensors(seen, added)
    return Dense(added.masked_fill(~seen, -torch.inf))


def _cut(edit: kernel.Edit, at: Tensor, keys: Tensor) -> kernel.Edit:
    """An edit for these rows and keys alone."""
    new: dict[str, Tensor] = {}
    for part in fields(edit):  # type: ignore[arg-type]
        value = getattr(edit, part.name)
        if part.name in ("keys", "source", "target"):
            new[part.name] = value[..., keys.to(value.device)]
        elif part.name == "rows" and value is not None:
            new[part.name] = value[:, at.to(value.device)]
    return replace(edit, **new)  # type: ignore[type-var]
