"""Attention knockout: which way information takes between tokens, and in which layers.

Geva et al. 2023 (arXiv 2304.14767). An edge `("image", "last")` lets the last token attend to image tokens no more, in
a window of layers; the weights of the other keys are renormalised, as if the mask had said so. What the answer loses
is what came that way in those layers: `effect = metric(blocked) - metric(base)`. Blocked together are all edges and, in
a window, all layers; windows slide by one layer. Cost: one forward pass a window (or head), two more for the base and
the noise floor. Limits: what was carried to other tokens before the window comes through; small windows find little
where the same thing is read in many layers; attention must go through transformers' interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Tower
from interp.hooks.drive.tail import last_tower
from interp.hooks.edits.edits import AttentionEdit, BiasKeys, MaskKeys
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import stretch
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.session import Session
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of, no_logits
from interp.metrics.judge import Judge, Metric, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about
from interp.records import Method, register
from interp.results.effects import AND, Effects

if TYPE_CHECKING:
    from interp.model import Model

Edges = Sequence[tuple[Positions, Positions]]


@hands_over
def knockout(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    edges: Edges,
    window: int | Literal["all"] = 1,
    heads: str | None = None,
    tower: str | None = None,
) -> Effects:
    """The effect of blocking edges (from, to) in every window of layers, labelled `L2-4.attention`.

    From and to are roles, spans or positions; `heads`, such as "L*.H*", blocks them in one head at a time instead.
    """
    anatomy = model.ready()
    x = model.inputs(inputs)
    stack = last_tower(anatomy, None) if tower is None else anatomy.tower(tower, text=tower)
    _check(x, stack, edges)
    cells = _windows(model, stack, window) if heads is None else _heads(model, heads, window, stack)
    logits = _run(model, x, [])
    reads = reads_of(metric, x, logits)
    judge = Judge(metric, x, classes=logits.ndim == 2)
    base = judge(reads.of(logits)).double()
    places = [site for sites in cells.values() for site in sites]
    unmoved = [BiasKeys(str(site), keys=a, positions=b) for site in dict.fromkeys(places) for a, b in edges]
    floor = float((judge(reads.of(_run(model, x, unmoved))) - base).abs().max())
    blocked = [
        judge(reads.of(_run(model, x, [MaskKeys(str(s), keys=a, positions=b) for s in sites for a, b in edges])))
        for sites in cells.values()
    ]
    return Effects(
        sites=tuple(cells), positions=None, values=torch.stack(blocked).double().cpu() - base.cpu(), base=base.cpu(),
        source=None, noise_floor=floor,
        meta={**about(model.module, x), "method": "attention knockout", "corruption": "hidden keys",
              "edges": [[str(a), str(b)] for a, b in edges], "window": window, "metric": metric_name(metric)},
    )  # fmt: skip


def _check(x: Inputs, tower: Tower, edges: Edges) -> None:
    """Every edge exists, and something can flow along it."""
    if not edges:
        raise InputsError("knockout needs at least one edge, such as edges=[('image', 'last')].")
    cross = tower.layers[0].kind == "cross"
    for edge in edges:
        if len(edge) != 2:
            raise InputsError(f"an edge is a pair (from, to), got {edge!r}.")
        keys, queries = (
            tower_inputs(x, Site(tower.name, 0, component), cross=cross).mask(spec)
            for component, spec in zip(("k", "q"), edge, strict=True)
        )
        if tower.bidirectional or cross:
            continue
        first = torch.where(keys.any(1), keys.int().argmax(1), keys.shape[1])
        last = torch.where(queries, torch.arange(queries.shape[1], device=queries.device), -1).amax(1)
        if bool((first > last).all()):
            raise InputsError(
                f"nothing flows from {edge[0]!r} to {edge[1]!r}: in the causal tower {tower.name!r} a token sees only"
                " earlier tokens. An edge is (from, to)."
            )


def _windows(model: Model, tower: Tower, window: int | Literal["all"]) -> dict[str, list[Site]]:
    layers = sorted(tower.by_index)
    size = len(layers) if window == "all" else window
    if not isinstance(size, int) or not 1 <= size <= len(layers):
        raise SiteError(f"window is 'all' or 1 to {len(layers)} layers of the tower {tower.name!r}, got {window!r}.")
    name = spelled(model.anatomy, tower)
    found = {}
    for some in (layers[start : start + size] for start in range(len(layers) - size + 1)):
        spelled_out = str(some[0]) if size == 1 else stretch(some)
        sites = [Site(name, layer, "attention") for layer in some]
        label = ".".join([*([] if name is None else [name]), f"L{spelled_out}", "attention"])
        found[label if spelled_out is not None else AND.join(map(str, sites))] = sites
    return found


def _heads(model: Model, heads: str, window: int | Literal["all"], tower: Tower) -> dict[str, list[Site]]:
    if window != 1:
        raise SiteError(f"heads= blocks one head of one layer at a time, so it takes no window, got {window!r}.")
    return {str(site): [site] for site in _each(model, heads, tower)}


def _each(model: Model, heads: str, tower: Tower) -> Iterator[Site]:
    for site in model.anatomy.sites(heads):
        if site.component != "attention" or model.anatomy.tower(site.tower, text=heads) is not tower:
            raise SiteError(f"heads={heads!r}: expected heads of the tower {tower.name!r} without a component.")
        for head in site.heads or range(model.anatomy.layer(site).heads):
            yield Site(site.tower, site.layer, "attention", (head,))


def _run(model: Model, x: Inputs, edits: Sequence[AttentionEdit]) -> Tensor:
    with Session(model.module, model.anatomy, edits=edits, inputs=x, family=model.family) as session, torch.no_grad():
        logits = logits_of(model.module(**model.called_with(x.kwargs)))
    session.check_fired()
    if logits is None:
        raise no_logits(model.module)
    return logits


register(
    Method(
        "interp.patching.knockout",
        number="effect on the metric of an edge of attention that is cut, blocked minus base, by layer or window",
        shown="curve",
        needs=("metric",),
        passes=lambda t: 2 + t.layers,
        example=lambda t: knockout(
            t.model, t.base, metric=t.metric, edges=[([1, 2], t.reads)], tower=t.tower.rstrip(".") or None
        ),
    )
)
