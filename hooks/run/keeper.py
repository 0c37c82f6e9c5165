"""What one run keeps of what passes: the tensors at the sites asked for, cut to what was asked, within a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.hooks.anatomy.spread import CUT, Order, Own, Whole, axis_of, divided, gathered, labelled
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.edits.edits import in_steps
from interp.hooks.errors import BudgetError, NotFired, SiteError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.moment import Moment
from interp.hooks.run.shelf import Shelf
from interp.hooks.run.tape import crosses, head_axis, select
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
    gather: bool = True
    """Where heads are in several processes, whether each gets all of them; else its own, under their names."""


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
        some = self.heads(site)
        heads = None if some is None else torch.tensor(some, device=value.device)
        if heads is None and not self._together(site):
            return self.keep(site, value, value)
        part = value if heads is None else value.index_select(2, heads)
        if not self.wish.grad:
            self.keep(site, value, part)
            return value
        if self._together(site):
            return self._keep_whole(site, value, part, heads)
        assert heads is not None
        return value.index_copy(2, heads, self.keep(site, part, part))

    def heads(self, site: Site) -> tuple[int, ...] | None:
        """Which heads of this process' call a recording of the site takes; None for all."""
        return None if site.layer is None else axis_of(self.anatomy.layer(site), site)

    def _together(self, site: Site) -> bool:
        """Whether a recording is put together from several processes."""
        if site.layer is None or not self.wish.gather or (share := self.anatomy.layer(site).share) is None:
            return False
        return site.component in CUT or (site.component == "neurons" and share.units)

    def _keep_whole(self, site: Site, value: Tensor, part: Tensor, heads: Tensor | None) -> Tensor:
        """With a gradient: the model goes on with its own heads of what is recorded, which are all."""
        order = Order.of(self.anatomy.layer(site), site)
        made = Whole.apply(part, order, 2)
        made = made if made.requires_grad else made.requires_grad_()
        self._put(site, made, fresh=True, whole=True)
        own = Own.apply(made, order, 2)
        if heads is None:
            return own
        return value.index_copy(2, heads[: own.shape[2]], own)

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

    def _put(self, site: Site, value: Tensor, *, fresh: bool, whole: bool = False) -> None:
        wish = self.wish
        if not whole and self._together(site):
            value, fresh = self._gathered(site, value), True
        if not wish.grad:
            value = value.detach()
            alone = value.untyped_storage().nbytes() <= value.numel() * value.element_size()
            safe = alone and (fresh or site.component in CALL)
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

    def _gathered(self, site: Site, value: Tensor) -> Tensor:
        layer = self.anatomy.layer(site)
        assert layer.share is not None
        if self.wish.grad:
            raise SiteError(f"{site} has no gradient where heads are in several processes: record z, q, k or v.")
        if site.component == "neurons":
            return torch.cat(gathered(value, layer.share), -1)
        return Order.of(layer, site).gathered(value, head_axis(site.component))

    def _shelve(self, site: Site, value: Tensor) -> None:
        """Write at once, so that memory holds one tensor at a time."""
        shelf = self.wish.shelf
        shelf[site] = joined(site, [shelf[site], value]) if self.pieces[site] else value
        self.pieces[site] = [value[:0]]

    def recorded(self) -> MutableMapping[Site, Tensor]:
        """What was recorded, in the order it was asked for; raises where something never happened."""
        self._label()
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

    def _label(self) -> None:
        """Of what is not gathered, the own heads under their names, and nothing where there are none."""
        if self.wish.gather or not divided(self.anatomy):
            return
        named: list[Site] = []
        for site in self.wish.sites:
            layer = None if site.layer is None else self.anatomy.layer(site)
            own = site if layer is None else labelled(layer, site)
            parts = self.pieces.pop(site, None) if own != site else None
            if own is not None:
                named.append(own)
                if parts is not None:
                    self.pieces[own] = parts
        self.wish.sites = named


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
