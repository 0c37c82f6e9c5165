"""Edge scores from gradients: one walk back through the blocks, a graph of one block at a time.

For a receiver v the slope is d metric / d in_v, in_v being the residual before the norm as v alone reads it; the score
of u -> v is the sum over positions of <change of u's write, slope>. In each block, from the last one down, the gradient
of q, k and v is taken back to the residual head by head, and that of the MLP's write to what the MLP reads, each is
contracted with every earlier layer's changes and forgotten. What stands in memory is one change of z and of the MLP's
write per layer, and one residual per layer and the graph of one block for the rows that are walked at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

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


class Slopes:
    """Adds up the scores [edge, row] of a pair, over one or more passes on its base."""

    def __init__(self, pair: GraphPair, more: Written, *, rules: Rules | None = None) -> None:
        refuse_rounding(pair.model.module)
        self.pair, self.blocks, self.graph, self.carries = pair, pair.blocks, pair.graph, pair.carries
        self.more, self.rules, self.parts = more, rules, pair.parts()
        self.first = [0, *self.graph.exists.sum(0).cumsum(0).tolist()]
        """Where a receiver's edges begin; they are in the order of `graph.edges`."""
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
        self._contract(Site(None, None, "logits"), slope)
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
                    "the metric does not move with the logits at the base run: like every divergence at its own"
                    " minimum, it has gradient 0 there, and this method would say 0 for every edge. Swap base and"
                    " source, use method='eap-ig', which also looks between the two, or use a logit difference."
                )
        slopes = torch.autograd.grad(score.sum(), [one.left for one in passes])
        if not all(bool(torch.isfinite(slope).all()) for slope in slopes):
            raise ModelError("the gradient at the last residual is not finite: nothing can follow from it.")
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
        if shape.mlp and self._read(Site(self.graph.tower, layer, "mlp_in")):
            start = hidden if shape.parallel else called.at["resid_mid"]
            write = called.at["mlp_write"]
            (found,) = torch.autograd.grad(write, start, slope.to(write.device), retain_graph=True)
            self._contract(Site(self.graph.tower, layer, "mlp_in"), found)
        if not self._read(Site(self.graph.tower, layer, "q_in", (0,))):
            return slope
        heads = [called.at[part] for part in "qkv"]
        assert called.out is not None
        slope = slope.to(called.out.device)
        *by_head, below = torch.autograd.grad(called.out, [*heads, hidden], slope, retain_graph=True)
        for part, value, by in zip("qkv", heads, by_head, strict=True):
            for head in range(value.shape[2]):
                only = torch.zeros_like(by)
                only[:, :, head] = by[:, :, head]
                (found,) = torch.autograd.grad(value, hidden, only, retain_graph=True)
                self._contract(Site(self.graph.tower, layer, f"{part}_in", (head,)), found)
        return below

    def _read(self, receiver: Site) -> bool:
        """Whether it reads any of the senders that count."""
        column = self.graph.exists[:, self.graph.receiver_at[receiver]]
        return bool(column.any() if self.some is None else column[list(self.some)].any())

    def _earlier(self, layer: int) -> bool:
        """Whether anything in a layer reads any of the senders that count."""
        return any(self._read(site) for site in self.graph.receivers if site.layer == layer)

    def _contract(self, receiver: Site, slope: Tensor) -> None:
        """The scores of every edge into a receiver."""
        v, rows = self.graph.receiver_at[receiver], self.rows
        if self._counts(0):
            self._add(v, slice(0, 1), _dot(self.more.embed[rows], slope))
        for layer in self.blocks.layers:
            if receiver.layer is not None and layer > receiver.layer:
                break
            heads = self.graph.heads_of(layer)
            if bool(self.graph.exists[heads.start, v]) and self._counts(heads.start):
                change = self.more.z[layer][rows]
                by_z = self.carries.back(layer, slope.to(change.device)).to(change.dtype)
                self._add(v, heads, (change * by_z).sum((1, 3), dtype=torch.float64).T)
            if layer in self.more.mlp:
                u = self.graph.mlp_of(layer)
                if bool(self.graph.exists[u, v]) and self._counts(u):
                    self._add(v, slice(u, u + 1), _dot(self.more.mlp[layer][rows], slope))

    def _add(self, v: int, senders: slice, found: Tensor) -> None:
        """Senders before a receiver are the first ones there are, so a run of them is a run of edges."""
        first = self.first[v]
        self.scores[first + senders.start : first + senders.stop, self.rows] += self.weight * found.to(
            self.scores.device
        )

    def _counts(self, sender: int) -> bool:
        return self.some is None or sender in self.some


def _dot(change: Tensor, slope: Tensor) -> Tensor:
    return (change * slope.to(change)).sum((1, 2), dtype=torch.float64)
