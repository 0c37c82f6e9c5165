"""Heads that see the first keys and those near by only, in time and memory linear in length.

A block of rows sees two runs of keys, the first ones and those around the block. Only these are gathered, with what the
call's own mask, its bias and the other edits say of them; the block's own keys come last, where the kernels look for
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Dense, Full, Mask, PerHead, Prefix, Window, as_mask

ROWS = 512
"""At least so many rows are computed together."""


@dataclass(frozen=True, eq=False)
class Near:
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


def seen_near(mask: Mask | None, heads: Sequence[int], nears: Sequence[Near], keys: int) -> Mask | None:
    """What these heads see of a call's mask under those that are about them."""
    own = [[near for near in nears if head in near.heads] for head in heads]
    if not any(own):
        return mask
    each = [_all(near.mask(keys) for near in some) for some in own]
    alike = all(some == own[0] for some in own)
    return as_mask(mask) & (each[0] if alike else PerHead(tuple(each)))


def _all(masks: Iterable[Mask]) -> Mask:
    found: Mask = Full()
    for mask in masks:
        found = mask if isinstance(found, Full) else found & mask
    return found


def together(heads: Sequence[int], nears: Sequence[Near]) -> list[tuple[tuple[int, ...], Near | None]]:
    """The heads in runs that one call computes: those under one `Near` of all rows, and all others."""
    runs: dict[int | None, list[int]] = {}
    for head in heads:
        own = [n for n, near in enumerate(nears) if head in near.heads]
        runs.setdefault(own[0] if len(own) == 1 and nears[own[0]].rows is None else None, []).append(head)
    return [(tuple(some), None if n is None else nears[n]) for n, some in runs.items()]


def attended(part: Part, near: Near, edits: Sequence[kernel.Edit]) -> Tensor:
    """z [example, head, query, d] of heads under a `Near`, a block of rows after the other; the part's mask has it."""
    queries, length = part.q.shape[2], part.k.shape[2]
    size = max(ROWS, near.recent)
    made = []
    for start in range(0, queries, size):
        at = torch.arange(start, min(start + size, queries), device=part.q.device)
        keys = _keys(near, at + length - queries, length)
        own = {**part.arguments, "mask": mask_between(part.mask, at + length - queries, keys)}
        if part.bias is not None:
            own["bias"] = part.bias.expand(-1, -1, queries, length)[:, :, at][..., keys]
        inner = [_cut(edit, at, keys) for edit in edits]
        z = attend(part.q[:, :, at], part.k[:, :, keys], part.v[:, :, keys], edits=inner, **own).z
        assert z is not None
        made.append(z)
    return torch.cat(made, 2)


def _keys(near: Near, i: Tensor, keys: int) -> Tensor:
    """Every key that rows at positions i may see, their own last."""
    low, high = int(i[0]), int(i[-1]) + 1
    close = torch.arange(max(0, low - near.recent + 1), min(keys, high + near.recent - 1), device=i.device)
    first = torch.arange(min(int(near.end.max().clamp(min=0)), keys), device=i.device)
    every = torch.unique(torch.cat([first, close]))
    inside = (every >= low) & (every < high)
    return torch.cat([every[~inside], every[inside]])


def mask_between(mask: Mask | None, i: Tensor, keys: Tensor) -> Dense:
    """A mask's part for rows at positions i and some keys."""
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
