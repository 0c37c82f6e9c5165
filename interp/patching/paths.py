"""What receivers read when one sender takes its value from the source run and everything between them is frozen.

With `freeze="heads"` the blocks above the sender are driven with all attention frozen, so that only MLPs answer it;
with `freeze="all"` the receiver's residual moves by what the sender writes more, and nothing is driven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.drive.chain import Chain, Tokens
from interp.hooks.drive.questions import Cell, differs
from interp.hooks.edits.edits import Set
from interp.hooks.run.tape import Tape
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site

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

    def lefts(self, senders: Sequence[Site]) -> list[Tensor]:
        """The last residuals with each sender moved [prompt, position, d]."""
        if self.freeze == "all":
            return [self.chain.left + self._more(sender) for sender in senders]
        ends = self._climb(senders, self.chain.layers[-1])[1]
        return [ends[sender].into(self.chain.left) for sender in senders]

    def unmoved(self) -> Tensor:
        """The base's own last residual by the way that moved ones take: what rounding makes of it."""
        if self.freeze == "all":
            return self.chain.left
        entered = self.chain.plain(self.chain.layers[0], "resid_pre")
        tokens = Tokens.between(entered, torch.full_like(entered, torch.nan))
        for layer in self.chain.layers:
            (tokens,) = self.chain.advance(layer, [tokens])
        return tokens.into(self.chain.left)

    def cells(self, senders: Sequence[Site], into: Sequence[Site]) -> list[Cell]:
        """What all receivers read with each sender moved, as questions of a sweep."""
        if self.freeze == "all":
            found = {sender: self._all(sender, into) for sender in senders}
        else:
            end = max(site.layer for site in into if site.layer is not None)
            found = self._climb(senders, end, into)[0]
        return [self._cell(found[sender], into) for sender in senders]

    def _cell(self, found: dict[Site, Tensor], into: Sequence[Site]) -> Cell:
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
                found[site] = self._read(site, self.chain.plain(site.layer, "resid_pre") + more, more, [])
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
        """Through the modules between the attention's output and its write."""
        carry = self.base.carry(sender)
        if self.ln == "freeze":
            return carry.linear(more)
        out, write = (self.old[Site(sender.tower, sender.layer, c)] for c in ("attn_out", "attn_write"))
        with torch.no_grad():
            return carry.exact((out.reshape(write.shape).double() + more).to(write.dtype)).double() - write.double()

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

    def _climb(
        self, senders: Sequence[Site], end: int, into: Sequence[Site] = ()
    ) -> tuple[dict[Site, dict[Site, Tensor]], dict[Site, Tokens]]:
        """All senders driven to layer `end` together: what receivers read on the way, and the tokens that came out."""
        chain, read = self.chain, {sender: dict[Site, Tensor]() for sender in senders}
        moved = {s: Tokens.between(self._moved(s), chain.plain(chain.layers[0], "resid_pre"))
                 for s in senders if s.layer is None}  # fmt: skip
        for layer in (n for n in chain.layers if n <= end):
            entered, here = chain.plain(layer, "resid_pre"), [site for site in into if site.layer == layer]
            starting = {sender: [self._edit(sender)] for sender in senders if sender.layer == layer}
            for sender in (*moved, *starting):
                edits = starting.get(sender, [])
                hidden = entered if edits else moved[sender].into(entered)
                for site in (s for s in here if before(chain.anatomy, sender, s)):
                    read[sender][site] = self._read(site, hidden, None, edits)
            if layer < end or not into:
                moved = dict(zip(moved, chain.advance(layer, list(moved.values())), strict=True))
                own = chain.run(layer, entered) if starting else entered
                for sender, edits in starting.items():
                    moved[sender] = Tokens.between(chain.run(layer, entered, edits=edits), own)
        return read, moved

    def _edit(self, sender: Site) -> Set:
        site = sender if sender.heads is None else Site(sender.tower, sender.layer, "z", sender.heads)
        return Set(str(site), self._moved(site))

    def _moved(self, site: Site) -> Tensor:
        old, new = self.old[site], self.new[site]
        if self.where is None:
            return new
        where = self.where.to(new.device)
        return torch.where(where.view(*where.shape, *[1] * (new.ndim - 2)), new, old)
