"""What one run keeps of what passes: the tensors at the sites asked for, cut to what was asked, within a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.edits.edits import in_steps
from interp.hooks.errors import BudgetError, NotFired
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.moment import Moment
from interp.hooks.run.shelf import Shelf
from interp.hooks.run.tape import crosses, head_index, select
from interp.hooks.sites import CALL, KV, Site


@dataclass
class Wish:
    """What to record, and how."""

    sites: Sequence[Site] = ()
    positions: Positions | None = None
    keys: Positions | None = None
    grad: bool = False
    dtype: torch.dtype | None = None
    shelf: MutableMapping[Site, Tensor] = field(default_factory=dict)
    cpu: bool = False
    budget: int | None = None
    steps: int | str | None = None
    """Which calls of the model are recorded; None for all."""


class Keeper:
    """Takes what was wished for, call by call."""

    def __init__(self, anatomy: Anatomy, wish: Wish, moment: Moment) -> None:
        self.anatomy, self.wish, self.moment = anatomy, wish, moment
        self.pieces: dict[Site, list[Tensor]] = defaultdict(list)
        self.bytes = 0

    @property
    def wanted(self) -> bool:
        """Whether the call that runs is one to record."""
        return in_steps(self.wish.steps, self.moment.calls)

    def keep_heads(self, site: Site, value: Tensor) -> Tensor:
        """Record the site's heads out of [b, position, head, d]; returns what the model goes on with."""
        if not self.wanted:
            return value
        heads = head_index(self.anatomy, site, value.device)
        if heads is None:
            return self.keep(site, value, value)
        part = value.index_select(2, heads)
        if not self.wish.grad:
            self.keep(site, value, part)
            return value
        return value.index_copy(2, heads, self.keep(site, part, part))

    def keep(self, site: Site, x: Tensor, value: Tensor) -> Tensor:
        """Record `value` at a site; returns what the model goes on with, which carries the gradient if one was asked
        for."""
        if not self.wanted:
            return x
        if self.wish.grad and value is x and value.is_floating_point() and not value.requires_grad:
            x = value = value.detach().requires_grad_()
        spec = self.wish.positions
        if spec is not None and site.component not in ("pattern", "scores", "logits", "out"):
            value = select(value, self._chosen(spec, site, value.shape[1]).to(value.device), axis=1)
        self._put(site, value, fresh=value is not x)
        return x

    def _chosen(self, spec: Positions, site: Site, length: int) -> Tensor:
        if site.component in KV:
            return self.moment.keys(spec, site, length, cross=crosses(self.anatomy, site))
        return self.moment.mask(spec, site, length)

    def _put(self, site: Site, value: Tensor, *, fresh: bool) -> None:
        wish = self.wish
        if not wish.grad:
            value = value.detach()
            whole = value.untyped_storage().nbytes() <= value.numel() * value.element_size()
            safe = whole and (fresh or site.component in CALL)
            moved = value.to(device="cpu" if wish.cpu else None, dtype=wish.dtype)
            value = value.clone() if moved is value and not safe else moved
        self.bytes += value.numel() * value.element_size()
        if wish.budget is not None and self.bytes > wish.budget:
            raise BudgetError(
                f"recording passed the budget of {wish.budget / 2**20:.0f} MiB at {site}: ask for fewer sites, heads"
                " or positions, store='cpu' or a directory, or a larger budget=."
            )
        if isinstance(wish.shelf, Shelf):
            self._shelve(site, value)
        else:
            self.pieces[site].append(value)

    def _shelve(self, site: Site, value: Tensor) -> None:
        """Write at once, so that memory holds one tensor at a time."""
        shelf = self.wish.shelf
        shelf[site] = joined(site, [shelf[site], value]) if self.pieces[site] else value
        self.pieces[site] = [value[:0]]

    def recorded(self) -> MutableMapping[Site, Tensor]:
        """What was recorded, in the order it was asked for; raises where something never happened."""
        missing = [str(s) for s in self.wish.sites if s not in self.pieces]
        if missing:
            raise NotFired(
                f"asked to record {', '.join(missing)}, but {'it' if len(missing) == 1 else 'they'} never ran for"
                " these inputs (a skipped layer, fewer passes than in the traced call, or a tower without its input)."
            )
        if isinstance(self.wish.shelf, Shelf):
            self.wish.shelf.sort(self.wish.sites)
            return self.wish.shelf
        for site in self.wish.sites:
            parts = self.pieces.pop(site)
            self.wish.shelf[site] = parts[0] if len(parts) == 1 else joined(site, parts)
        return self.wish.shelf


def joined(site: Site, parts: list[Tensor]) -> Tensor:
    """Several calls of one module in one run: images one after the other (Qwen-VL), or steps of generating."""
    if site.component not in ("pattern", "scores"):
        return torch.cat(parts, dim=1)
    rows, keys = sum(p.shape[2] for p in parts), sum(p.shape[3] for p in parts)
    whole = parts[0].new_zeros(*parts[0].shape[:2], rows, keys)
    r = c = 0
    for part in parts:
        whole[:, :, r : r + part.shape[2], c : c + part.shape[3]] = part
        r, c = r + part.shape[2], c + part.shape[3]
    return whole
