"""Gradients of a metric at sites: one recorded run whose graph is kept, and as many backward passes as are asked for.

Parameters are frozen while the run is made, so that a backward pass computes no weight gradients, and are given back as
they were. Gradients come from the model's own graph, in its own dtype and under its own attention implementation; what
is summed from them is summed in float32 or better. A site that the metric does not depend on has gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.quantised import quantised, rounds_its_input
from interp.hooks.anatomy.spread import divided
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.drive.blocks import called
from interp.hooks.drive.intercept import Calls, Intercept
from interp.hooks.edits.edits import Edit, ValueEdit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.sites import Site
from interp.hooks.slopes.rules import Rules
from interp.hooks.stand.call import Call
from interp.hooks.stand.output import logits_of, no_logits

Score = Callable[[Tensor], Tensor]
"""From the model's logits to one number a row."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient while inside; those that did do so again afterwards."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


class _Gated(torch.autograd.Function):
    """The tensor itself; on the way back nothing passes while its layer is the one that is dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Dropped, layer: tuple[str | None, int]) -> Tensor:
        ctx.dropped, ctx.layer = dropped, layer
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if ctx.dropped.layer != ctx.layer:
            return grad, None, None
        return torch.zeros_like(grad) if ctx.dropped.zeros else None, None, None


@dataclass(eq=False)
class Dropped:
    """Which layer's writes to the residual pass no gradient, and which layers there are."""

    layer: tuple[str | None, int] | None = None
    layers: dict[tuple[str | None, int], None] = field(default_factory=dict)
    zeros: bool = False
    """Whether nothing is written out as zeros: what sums gradients over processes takes no gradient for a mistake."""


@dataclass(frozen=True, eq=False, repr=False)
class _Gate(ValueEdit):
    """Stands at what a block writes."""

    dropped: Any = None
    layer: Any = None

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        self.dropped.layers[self.layer] = None
        made: Tensor = _Gated.apply(x, self.dropped, self.layer)
        return made


def gates(anatomy: Anatomy, dropped: Dropped) -> list[Edit]:
    """One at each write of every block: GradDrop's stop."""
    one, dropped.zeros = len(anatomy.towers) == 1, divided(anatomy)
    return [
        _Gate(str(Site(None if one else name, layer.index, part)), dropped=dropped, layer=(name, layer.index))
        for name, tower in anatomy.towers.items()
        for layer in tower.layers
        for part in ("attn_write", "mlp_write")
        if part in layer.ports
    ]


@dataclass(eq=False)
class Graph:
    """A run with its graph: values at sites, the metric per row, attention calls where they were asked for."""

    values: Mapping[Site, Tensor]
    logits: Tensor
    score: Tensor
    calls: Mapping[Site, Call] = field(default_factory=dict)
    rules: Rules | None = None

    def gradients(self, *, again: bool = False) -> dict[Site, Tensor]:
        """The gradient of the summed metric at each site; `again` keeps the graph for another pass."""
        sites = list(self.values)
        if self.score.grad_fn is None:
            found: Sequence[Tensor | None] = [None] * len(sites)
        else:
            tensors = [self.values[s] for s in sites]
            found = torch.autograd.grad(self.score.sum(), tensors, retain_graph=again, allow_unused=True)
        if self.rules is not None:
            self.rules.check_used()
        made = {s: torch.zeros_like(self.values[s]) if g is None else g for s, g in zip(sites, found, strict=True)}
        for site, gradient in made.items():
            if not bool(torch.isfinite(gradient).all()):
                raise ModelError(f"the gradient at {site} is not finite: nothing can follow from it.")
        return made

    def steepness(self) -> float:
        """The largest derivative of the metric by a logit."""
        if self.score.grad_fn is None:
            return 0.0
        (found,) = torch.autograd.grad(self.score.sum(), self.logits, retain_graph=True, allow_unused=True)
        return 0.0 if found is None else float(found.abs().max())


def graph(
    module: nn.Module,
    anatomy: Anatomy,
    inputs: Inputs,
    kwargs: Mapping[str, Any],
    *,
    sites: Iterable[Site],
    score: Score,
    edits: Iterable[Edit] = (),
    rules: Rules | None = None,
    dropped: Dropped | None = None,
    calls: Iterable[Site] = (),
    family: Family | None = None,
    kept: Tensor | None = None,
) -> Graph:
    """Run once with a graph from the sites to the metric. `calls` are sites whose attention calls are kept; `kept` are
    the columns whose logits are made and scored, where the model can be asked for some."""
    refuse_rounding(module)
    sites, attended = list(sites), list(calls)
    session = Session(module, anatomy, edits=edits, wish=Wish(sites, grad=True), inputs=inputs, family=family)
    with ExitStack() as undo:
        undo.enter_context(frozen(module))
        if rules is not None:
            undo.enter_context(rules.on())
        undo.enter_context(session)
        if dropped is not None:
            stops = Session(module, anatomy, edits=gates(anatomy, dropped), inputs=inputs, family=family)
            undo.enter_context(stops)
        tap = Calls()
        put = undo.enter_context(Intercept(module))
        for layer in {(layer.attention, layer.nth): layer for layer in map(anatomy.layer, attended)}.values():
            put.tap(layer, tap)
        undo.enter_context(torch.enable_grad())
        logits = logits_of(module(**called(module, kwargs, kept)))
        if logits is None:
            raise no_logits(module)
        logits = logits if logits.requires_grad else logits.detach().requires_grad_()
        value = score(logits)
    session.check_fired()
    if not value.requires_grad:
        raise InputsError(
            "the metric carries no gradient: it counts or compares (accuracy, argmax) or detaches. Use a logit"
            " difference, a probability or a log-probability, or interp.patch, which needs no gradient."
        )
    return Graph(session.recorded(), logits, value, {s: _one(tap, module, anatomy, s) for s in attended}, rules)


def _one(tap: Calls, module: nn.Module, anatomy: Anatomy, site: Site) -> Call:
    found = tap.of(module, anatomy.layer(site))
    if len(found) != 1:
        raise ModelError(
            f"{site}: its attention was called {len(found)} times through transformers' interface in one run, and this"
            " method needs its one call."
        )
    return found[0]


def refuse_rounding(module: nn.Module) -> None:
    """Raise where gradients are not those of what the model computes."""
    for name, child in module.named_modules():
        if rounds_its_input(child):
            raise ModelError(
                f"{name} is {quantised(child)}, which rounds what it reads: its gradient is not that of what it"
                " computes. Use interp.patch, or load the model without that quantisation."
            )
