"""Edge scores from gradients: one walk back through the blocks, a graph of one block at a time.

For a receiver v the slope is d metric / d in_v, in_v being the residual before the norm as v alone reads it; the score
of u -> v is the sum over positions of <change of u's write, slope>. In each block, from the last one down, the gradient
of q, k and v is taken back to the residual head by head, and that of the MLP's write to what the MLP reads; they are
contracted with every earlier layer's changes and forgotten. What the heads of an earlier layer write more is made once
for all receivers of a block (d x d products a token; to take each receiver's slope back to those heads would be as many
times that). Memory holds one change of z and of the MLP's write per layer, and for the rows that are walked at a time
one residual per layer, the graph of one block, a slope per receiver of it and a write per head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair, Written
from interp.hooks.drive.recording import Recording
from interp.hooks.edits.edits import Edit
from interp.hooks.edits.placing import places
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import frozen, refuse_rounding
from interp.hooks.slopes.rules import Rules

FLAT = 1e-6
"""Slopes of the metric by the logits that are rounding, not slopes."""


Edits = Callable[[slice], Sequence[Edit]]
"""The edits of a pass on these rows."""
Scored = tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]
"""Scores of edges, the metric of base and source, and what a method has to say."""


class SlopeStack:
    """Slopes of some receivers side by side [receiver, row, position, d]."""

    def __init__(self, most: int, like: Tensor) -> None:
        self.sites: list[Site] = []
        self.slopes = like.detach().new_empty(most, *like.shape)

    def add(self, site: Site, slope: Tensor) -> None:
        self.slopes[len(self.sites)] = slope
        self.sites.append(site)


class Slopes:
    """Adds up the scores [edge, row] of a pair, over one or more passes on its base."""

    def __init__(self, pair: GraphPair, more: Written, *, rules: Rules | None = None) -> None:
        refuse_rounding(pair.model.module)
        self.pair, self.blocks, self.graph, self.carries = pair, pair.blocks, pair.graph, pair.carries
        self.more, self.rules, self.parts = more, rules, pair.parts()
        counts = self.graph.exists.sum(0)
        self.first = counts.cumsum(0) - counts
        """Where a receiver's edges begin; they are in the order of `graph.edges`, and the senders before a receiver are
        the first ones there are, so that a run of senders is a run of edges."""
        shape = len(self.graph.edges), pair.base.batch
        self.scores = torch.zeros(shape, dtype=torch.float64, device=pair.model.device)

    def add(
        self,
        *,
        edits: Edits = lambda _: (),
        weight: float = 1.0,
        senders: Collection[int] | None = None,
        first_order: bool = False,
    ) -> None:
        """One pass with edits and its walk back; `senders` are those whose edges count, all by default."""
        self.weight, self.some = weight, senders
        with ExitStack() as undo:
            undo.enter_context(frozen(self.pair.model.module))
            if self.rules is not None:
                undo.enter_context(self.rules.on())
            passes = [self._pass(rows, edits) for rows in self.parts]
            slopes = self._slopes(passes, first_order)
            for rows, passed, slope in zip(self.parts, passes, slopes, strict=True):
                passed.logits = passed.left = slope.new_empty(0)
                self._walk(rows, edits, passed if len(passes) == 1 else None, slope)
            if self.rules is not None:
                self.rules.check_used()
        self.pair.passes += 2

    def _pass(self, rows: slice, edits: Edits) -> Recording:
        """A pass whose logits have a graph; where there are several, the residuals of each are made again later."""
        passed = self.pair.pass_base(rows, edits=edits(rows), leaf=True)
        if len(self.parts) > 1:
            passed.entered.clear()
        return passed

    def _walk(self, rows: slice, edits: Edits, passed: Recording | None, slope: Tensor) -> None:
        """Back through the blocks with some rows."""
        made = list(edits(rows))
        passed = self.pair.pass_base(rows, edits=made) if passed is None else passed
        self.edits = [(site.layer, edit) for edit in made for site in places(self.blocks.anatomy, edit)]
        self.rows = rows
        last = SlopeStack(1, slope)
        last.add(Site(None, None, "logits"), slope)
        self._contract(last)
        for layer in reversed(self.blocks.layers):
            slope = self._block(passed, layer, slope)

    def _slopes(self, passes: Sequence[Recording], first_order: bool) -> Sequence[Tensor]:
        """The gradients of the metric by the last residuals."""
        with torch.enable_grad():
            score = self.pair.judge(passes)
        if not score.requires_grad:
            raise InputsError(
                "the metric carries no gradient: it counts or compares (accuracy, argmax) or detaches. Use a logit"
                " difference, a probability or a log-probability, or method='exact', which needs no gradient."
            )
        if first_order:
            steep = torch.autograd.grad(score.sum(), [one.logits for one in passes], retain_graph=True)
            if not max(float(one.abs().max()) for one in steep) > FLAT:
                raise InputsError(
                    "the metric does not change with the logits at the base run. A divergence has gradient 0 at its"
                    " minimum, so this method would give 0 for every edge. Swap base and source, or use"
                    " method='eap-ig', which also takes gradients between the two, or use a logit difference."
                )
        slopes = torch.autograd.grad(score.sum(), [one.left for one in passes])
        if not all(bool(torch.isfinite(slope).all()) for slope in slopes):
            raise ModelError(
                "the gradient at the last residual is not finite, so no number can be computed from it: look for the"
                " layer with m.check(), or run in float32."
            )
        return slopes

    def _block(self, passed: Recording, layer: int, slope: Tensor) -> Tensor:
        """Everything read in a block; returns the slope at its input."""
        shape = self.graph.by_index[layer]
        if not self._earlier(layer):
            return slope
        hidden = passed.entered.pop(layer).detach().requires_grad_()
        inside = [edit for where, edit in self.edits if where == layer]
        mlp = [] if not shape.mlp else ["mlp_write"] if shape.parallel else ["resid_mid", "mlp_write"]
        called = self.blocks.run(passed, layer, hidden, record=["q", "k", "v", *mlp], edits=inside, grad=True)
        middle = called.at.get("resid_mid", called.whole)
        slope = slope.to(middle.device)
        found = SlopeStack(len(self.graph.receivers_of(layer)), hidden)
        if shape.mlp and self._read(Site(self.graph.tower, layer, "mlp_in")):
            start = hidden if shape.parallel else middle
            write = called.at["mlp_write"]
            (by_mlp,) = torch.autograd.grad(write, start, slope.to(write.device), retain_graph=True)
            found.add(Site(self.graph.tower, layer, "mlp_in"), by_mlp)
            slope = slope if shape.parallel else slope + by_mlp
        if not self._read(Site(self.graph.tower, layer, "q_in", (0,))):
            self._contract(found)
            return slope
        return self._heads(found, layer, hidden, [called.at[part] for part in "qkv"], middle, slope)

    def _heads(
        self, found: SlopeStack, layer: int, hidden: Tensor, heads: list[Tensor], middle: Tensor, slope: Tensor
    ) -> Tensor:
        """What every head of a layer reads, in addition to what is found in it already; returns the slope at its
        input."""
        *by_head, below = torch.autograd.grad(middle, [*heads, hidden], slope, retain_graph=True)
        self._back(found, layer, hidden, heads, by_head)
        self._contract(found)
        return below

    def _back(
        self, found: SlopeStack, layer: int, hidden: Tensor, heads: list[Tensor], by_head: Sequence[Tensor]
    ) -> None:
        """Take the gradients of q, k and v back to the residual, head by head."""
        for part, value, by in zip("qkv", heads, by_head, strict=True):
            for head in range(value.shape[2]):
                only = torch.zeros_like(by)
                only[:, :, head] = by[:, :, head]
                (one,) = torch.autograd.grad(value, hidden, only, retain_graph=True)
                found.add(Site(self.graph.tower, layer, f"{part}_in", (head,)), one)

    def _read(self, receiver: Site) -> bool:
        """Whether it reads any of the senders that count."""
        column = self.graph.exists[:, self.graph.receiver_at[receiver]]
        return bool(column.any() if self.some is None else column[list(self.some)].any())

    def _earlier(self, layer: int) -> bool:
        """Whether anything in a layer reads any of the senders that count."""
        return any(self._read(site) for site in self.graph.receivers if site.layer == layer)

    def _contract(self, found: SlopeStack) -> None:
        """The scores of every edge into some receivers that read at one layer, all against a layer's senders in one
        product per row."""
        if not found.sites:
            return
        numbers = torch.tensor([self.graph.receiver_at[site] for site in found.sites])
        slopes, exists = found.slopes[: len(numbers)], self.graph.exists[:, numbers]
        self._score(slice(0, 1), numbers, exists, slopes, lambda: self.more.embed[None, self.rows])
        for layer in self.blocks.layers:
            if not bool(exists[self.graph.heads_of(layer).start].any()):
                break
            heads, carried = self.graph.heads_of(layer), partial(self.carries.carried, layer)
            self._score(heads, numbers, exists, slopes, partial(self._writes, layer), carried)
            if layer in self.more.mlp:
                u = self.graph.mlp_of(layer)
                self._score(slice(u, u + 1), numbers, exists, slopes, partial(self._mlp, layer))

    def _writes(self, layer: int) -> Tensor:
        """What the heads of a layer write more, before the modules behind the projection [head, row, position, d]."""
        return self.carries.by_head(layer, self.more.z[layer][self.rows], self.pair.model.dtype)

    def _mlp(self, layer: int) -> Tensor:
        return self.more.mlp[layer][None, self.rows]

    def _score(
        self,
        senders: slice,
        receivers: Tensor,
        exists: Tensor,
        slopes: Tensor,
        writes: Callable[[], Tensor],
        carried: Callable[[Tensor], Tensor] = lambda slopes: slopes,
    ) -> None:
        """Add <write, slope> of each of these senders, which write side by side, and each receiver that reads them."""
        live = exists[senders.start]
        if not bool(live.any()) or not self._counts(senders.start):
            return
        change = writes()
        slopes = slopes if bool(live.all()) else slopes[live.to(slopes.device)]
        slopes = carried(slopes.to(change.device)).to(change.dtype)
        at = self.first[receivers[live]][:, None] + torch.arange(senders.start, senders.stop)
        self._add(at.flatten(), slopes, change)

    def _add(self, edges: Tensor, slopes: Tensor, change: Tensor) -> None:
        """Add what these edges, receiver by receiver, get from slopes and changes [node, row, position, d]."""
        made = torch.bmm(slopes.flatten(2).transpose(0, 1), change.flatten(2).permute(1, 2, 0))
        made = made.permute(1, 2, 0).flatten(0, 1).to(self.scores) * self.weight
        self.scores[:, self.rows].index_add_(0, edges.to(made.device), made)

    def _counts(self, sender: int) -> bool:
        return self.some is None or sender in self.some
