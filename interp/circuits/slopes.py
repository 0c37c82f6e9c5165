"""Edge scores from gradients: one walk back through the blocks, a graph of one block at a time.

For a receiver v the slope is d metric / d in_v, in_v being the residual before the norm as v alone reads it; the score
of u -> v is the sum over positions of <change of u's write, slope>. In each block, from the last one down, the gradient
of q, k and v is taken back to the residual head by head, and that of the MLP's write to what the MLP reads, each is
contracted with every earlier layer's changes and forgotten. What stands in memory is one residual and one change of z
and of the MLP's write per layer, and the graph of one block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor

from interp.circuits.changes import Pair, Written
from interp.hooks.edits import Edit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.gradients import frozen, refuse_rounding
from interp.hooks.placing import places
from interp.hooks.rules import Rules
from interp.hooks.sites import Site
from interp.hooks.walk import Passed

FLAT = 1e-6
"""Slopes of the metric by the logits that are rounding, not slopes."""


class Slopes:
    """Adds up the scores [row, sender, receiver] of a pair over one or more passes on its base."""

    def __init__(self, pair: Pair, more: Written, *, rules: Rules | None = None) -> None:
        refuse_rounding(pair.model.module)
        self.pair, self.walk, self.graph, self.carries = pair, pair.walk, pair.graph, pair.carries
        self.more, self.rules = more, rules
        counts = len(self.graph.senders), len(self.graph.receivers)
        self.scores = torch.zeros(pair.base.batch, *counts, dtype=torch.float64, device=pair.model.device)

    def add(
        self,
        *,
        edits: Iterable[Edit] = (),
        weight: float = 1.0,
        senders: Collection[int] | None = None,
        first_order: bool = False,
    ) -> None:
        """One pass with edits and its walk back; `senders` are those whose edges count, all by default."""
        self.weight, self.some, edits = weight, senders, list(edits)
        self.edits = [(site.layer, edit) for edit in edits for site in places(self.walk.anatomy, edit)]
        with ExitStack() as undo:
            undo.enter_context(frozen(self.pair.model.module))
            if self.rules is not None:
                undo.enter_context(self.rules.on())
            passed = self.pair.pass_base(edits=edits, leaf=True)
            slope = self._slope(passed, first_order)
            passed.logits = passed.left = slope.new_empty(0)
            self._contract(Site(None, None, "logits"), slope)
            for layer in reversed(self.walk.layers):
                slope = self._block(passed, layer, slope)
            if self.rules is not None:
                self.rules.check_used()
        self.pair.passes += 1

    def _slope(self, passed: Passed, first_order: bool) -> Tensor:
        """The gradient of the metric by the last residual."""
        with torch.enable_grad():
            score = self.pair.judge(passed)
        if not score.requires_grad:
            raise InputsError(
                "the metric carries no gradient: it counts or compares (accuracy, argmax) or detaches. Use a logit"
                " difference, a probability or a log-probability, or method='exact', which needs no gradient."
            )
        if first_order:
            (steep,) = torch.autograd.grad(score.sum(), passed.logits, retain_graph=True)
            if not float(steep.abs().max()) > FLAT:
                raise InputsError(
                    "the metric does not move with the logits at the base run: like every divergence at its own"
                    " minimum, it has gradient 0 there, and this method would say 0 for every edge. Swap base and"
                    " source, use method='eap-ig', which also looks between the two, or use a logit difference."
                )
        (slope,) = torch.autograd.grad(score.sum(), passed.left)
        if not bool(torch.isfinite(slope).all()):
            raise ModelError("the gradient at the last residual is not finite: nothing can follow from it.")
        return slope

    def _block(self, passed: Passed, layer: int, slope: Tensor) -> Tensor:
        """Everything read in a block; returns the slope at its input."""
        shape = self.graph.by_index[layer]
        if not self._earlier(layer):
            return slope
        hidden = passed.entered.pop(layer).detach().requires_grad_()
        inside = [edit for where, edit in self.edits if where == layer]
        mlp = [] if not shape.mlp else ["mlp_write"] if shape.parallel else ["resid_mid", "mlp_write"]
        called = self.walk.block(passed, layer, hidden, record=["q", "k", "v", *mlp], edits=inside, grad=True)
        if shape.mlp and self._read(Site(self.graph.tower, layer, "mlp_in")):
            start = hidden if shape.parallel else called.at["resid_mid"]
            (found,) = torch.autograd.grad(called.at["mlp_write"], start, slope, retain_graph=True)
            self._contract(Site(self.graph.tower, layer, "mlp_in"), found)
        if not self._read(Site(self.graph.tower, layer, "q_in", (0,))):
            return slope
        heads = [called.at[part] for part in "qkv"]
        assert called.out is not None
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
        v = self.graph.receiver_at[receiver]
        if self._counts(0):
            self.scores[:, 0, v] += self.weight * _dot(self.more.embed, slope)
        for layer in self.walk.layers:
            if receiver.layer is not None and layer > receiver.layer:
                break
            heads = self.graph.heads_of(layer)
            if bool(self.graph.exists[heads.start, v]) and self._counts(heads.start):
                change = self.more.z[layer]
                by_z = self.carries.back(layer, slope).to(change.dtype)
                self.scores[:, heads, v] += self.weight * (change * by_z).sum((1, 3), dtype=torch.float64)
            if layer in self.more.mlp:
                u = self.graph.mlp_of(layer)
                if bool(self.graph.exists[u, v]) and self._counts(u):
                    self.scores[:, u, v] += self.weight * _dot(self.more.mlp[layer], slope)

    def _counts(self, sender: int) -> bool:
        return self.some is None or sender in self.some


def _dot(change: Tensor, slope: Tensor) -> Tensor:
    return (change * slope.to(change.dtype)).sum((1, 2), dtype=torch.float64)
