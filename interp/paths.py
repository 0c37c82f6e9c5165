"""What receivers read when one sender takes its value from the source run and everything between them is frozen.

With `freeze="heads"` the blocks above the sender are driven with all attention frozen, so that only MLPs answer it;
with `freeze="all"` the receiver's residual moves by what the sender writes more, and nothing is driven.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.hooks.anatomy import Anatomy
from interp.hooks.cell import Cell, differs
from interp.hooks.chain import Chain
from interp.hooks.edits import Set
from interp.hooks.sites import Site
from interp.hooks.tape import Tape
from interp.hooks.writes import Writes

Freeze = Literal["heads", "all"]
Norms = Literal["recompute", "freeze"]
READS = {"q_in": "q", "k_in": "k", "v_in": "v", "mlp_in": "mlp_in"}
"""What is put into a receiver in the last run."""


def before(anatomy: Anatomy, sender: Site, receiver: Site) -> bool:
    """Whether a path leads from one to the other."""
    if receiver.layer is None or sender.layer is None:
        return True
    if sender.tower not in (receiver.tower, "cross"):
        return False
    within = receiver.component == "mlp_in" and "resid_mid" in anatomy.layer(receiver).ports
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and sender.heads is not None and within)


@dataclass(eq=False)
class Paths:
    """The base run with one sender moved; `where` [prompt, position] says at which positions, None for all."""

    chain: Chain
    old: Tape
    new: Tape
    where: Tensor | None
    freeze: Freeze
    ln: Norms

    def __post_init__(self) -> None:
        self.base, self.source = (Writes(self.chain.module, tape, self.chain.tower) for tape in (self.old, self.new))

    def left(self, sender: Site) -> Tensor:
        """The last residual with the sender moved [prompt, position, d]."""
        if self.freeze == "all":
            return self.chain.left + self._more(sender)
        ((layer, hidden, edits),) = deque(self._climb(sender), maxlen=1)
        return self.chain.run(layer, hidden, edits=edits)

    def cell(self, sender: Site, into: Sequence[Site]) -> Cell:
        """What all receivers read, as one question of a sweep."""
        found = self._all(sender, into) if self.freeze == "all" else self._heads(sender, into)
        first, *rest = (self._part(site, found.get(site), many=len(into) > 1) for site in into)
        return Cell(first.site, first.values, first.where, also=tuple(rest), moved=first.moved)

    def _part(self, site: Site, value: Tensor | None, *, many: bool) -> Cell:
        assert site.layer is not None
        put = Site(site.tower, site.layer, READS[site.component], site.heads)
        base = self.chain.plain(site.layer, put.component)
        value = base if value is None else value
        moved = differs(base, value, put.heads)
        return Cell(put, value, torch.ones_like(moved) if many else moved, moved=moved if many else None)

    def _all(self, sender: Site, into: Sequence[Site]) -> dict[Site, Tensor]:
        more, found = self._more(sender), {}
        for site in into:
            if before(self.chain.anatomy, sender, site):
                assert site.layer is not None
                found[site] = self._read(site, self.chain.entered(site) + more, more, [])
        return found

    def _more(self, sender: Site) -> Tensor:
        """What the sender writes more in the source run."""
        if sender.heads is None:
            more = self.new[sender].double() - self.old[sender].double()
        else:
            more = (self.source.results(sender, sender.heads) - self.base.results(sender, sender.heads))[:, :, 0]
        more = more if self.where is None else more * self.where[..., None].to(more.device)
        return (more if sender.heads is None else self._carried(sender, more)).to(self.chain.left.dtype)

    def _carried(self, sender: Site, more: Tensor) -> Tensor:
        """Through what stands between the attention's output and its write."""
        carry = self.base.carry(sender)
        if self.ln == "freeze":
            return carry.linear(more)
        out, write = (self.old[Site(sender.tower, sender.layer, c)] for c in ("attn_out", "attn_write"))
        with torch.no_grad():
            return carry.exact((out.reshape(write.shape).double() + more).to(write.dtype)).double() - write.double()

    def _heads(self, sender: Site, into: Sequence[Site]) -> dict[Site, Tensor]:
        """The blocks above the sender driven, receivers read on the way."""
        found: dict[Site, Tensor] = {}
        end = max(site.layer for site in into if site.layer is not None)
        for layer, hidden, edits in self._climb(sender, end):
            for site in into:
                if site.layer == layer and before(self.chain.anatomy, sender, site):
                    found[site] = self._read(site, hidden, None, edits)
        return found

    def _read(self, site: Site, hidden: Tensor, more: Tensor | None, edits: Sequence[Set]) -> Tensor:
        """What a receiver takes from a residual, which is the base's and `more`; its norm as asked for."""
        assert site.layer is not None
        component = READS[site.component]
        if self.ln == "recompute":
            return self.chain.read(site.layer, component, hidden, edits=edits)
        if more is None:
            reads = self.chain.reads_from(site.layer, component)
            there = hidden if reads == "resid_pre" else self.chain.read(site.layer, reads, hidden, edits=edits)
            more = there - self.chain.plain(site.layer, reads)
        return self.chain.read_held(site.layer, component, more)

    def _climb(self, sender: Site, end: int | None = None) -> Iterator[tuple[int, Tensor, list[Set]]]:
        """Each layer from the sender's on (to `end`) with its residual and the edits that move the sender there."""
        start = self.chain.first if sender.layer is None else sender.layer
        hidden = self.chain.plain(start, "resid_pre") if sender.layer is not None else self._moved(sender)
        for layer in self.chain.layers:
            if layer < start or (end is not None and layer > end):
                continue
            edits = [self._edit(sender)] if layer == sender.layer else []
            yield layer, hidden, edits
            if layer != (self.chain.last if end is None else end):
                hidden = self.chain.run(layer, hidden, edits=edits)

    def _edit(self, sender: Site) -> Set:
        site = sender if sender.heads is None else Site(sender.tower, sender.layer, "z", sender.heads)
        return Set(str(site), self._moved(site))

    def _moved(self, site: Site) -> Tensor:
        old, new = self.old[site], self.new[site]
        if self.where is None:
            return new
        where = self.where.to(new.device)
        return torch.where(where.view(*where.shape, *[1] * (new.ndim - 2)), new, old)
