"""Edges with one score for each span of tokens: a head that matters at one token need not matter at another.

Haklay et al. 2025, PEAP (arXiv 2502.04577). Scores of edges sum over positions, so that what an edge does at one token
can cancel what it does at another, and a circuit keeps it at all of them. Here tokens are grouped by a schema: `spans`
names stretches of tokens, in each prompt its own, so that prompts of unequal length share one circuit; what is in none
is "rest". With Delta_u what u writes more in the source and masks of spans s and t,

    S[u -> v, s, s] = sum over p in s of <Delta_u[p], d metric / d in_v[p]>        v a query, an MLP, the logits
    S[u -> v, s, t] = the same for a k or v input, of which the metric only sees what queries at t read of it

the second being the paper's crossing edges: through key or value of a token in s into the head's output at a token in
t. Their sum over s and t is EAP's score. `run` gives f of a circuit of edges at spans: at other spans a receiver reads
the source's value (`graph/soft.py`). Cost: as EAP, with the walk back through q, k and v once per span. Limits:
gradients at the base, blind where it is flat; a circuit is of edges at spans s, for all t.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.circuits.found.span_edges import SpanEdges
from interp.circuits.graph.changes import GraphPair, Written
from interp.circuits.graph.running import Runner
from interp.circuits.graph.slopes import Slopes, SlopeStack
from interp.circuits.graph.soft import Soft
from interp.hooks.errors import InputsError
from interp.hooks.inputs.positions import resolve
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

REST = "rest"


@hands_over
@torch.enable_grad()
def span_edges(
    model: Model, *, base: Any, source: Any, metric: Metric, spans: Mapping[str, Any], tower: str | None = None
) -> SpanEdges:
    """The score of every edge at every span, per example. `spans` are positions by name (`task.positions`, words, masks
    [row, position]) that do not overlap."""
    pair = GraphPair(model, base, source, metric, tower)
    masks = schema(pair, spans)
    more, score, other = pair.changes()
    slopes = _SpanSlopes(pair, more, list(masks.values()))
    slopes.add(first_order=True)
    meta = {**about(model.module, pair.base), "method": "peap", "metric": metric_name(metric), "passes": pair.passes,
            "source": source if isinstance(source, str) else "run"}  # fmt: skip
    found = slopes.scores.unflatten(1, (len(masks), len(masks), -1))
    last = None if other is None else other.double().cpu()
    return SpanEdges(pair.graph, tuple(masks), found.cpu(), score.double().cpu(), last, meta)


def schema(pair: GraphPair, spans: Mapping[str, Any]) -> dict[str, Tensor]:
    """Masks [row, position] of all spans, the last being what is in none of them."""
    inputs = tower_inputs(pair.base, Site(pair.blocks.name, None, "embed"))
    found: dict[str, Tensor] = {}
    taken = torch.zeros_like(inputs.valid)
    for name, spec in spans.items():
        mask = resolve(spec, inputs.valid, inputs.roles)
        if name == REST or bool((mask & taken).any()):
            raise InputsError(f"spans do not overlap, and none is called {REST!r}; {name!r} is or does.")
        found[name], taken = mask, taken | mask
    return {**found, REST: inputs.valid & ~taken}


def run(
    model: Model,
    circuit: Tensor,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    spans: Mapping[str, Any],
    tower: str | None = None,
) -> float:
    """f of a circuit [sender, receiver, span]: the share of the gap between nothing and the model."""
    pair = GraphPair(model, base, source, metric, tower)
    runner, masks = Runner(pair), torch.stack(list(schema(pair, spans).values()))
    if circuit.shape != (*pair.graph.exists.shape, len(masks)):
        raise InputsError(
            f"a circuit of these spans has shape {[*pair.graph.exists.shape, len(masks)]}, got {list(circuit.shape)}."
        )
    weights = runner.full.embed
    gates = torch.einsum("uvs,sbp->uvbp", circuit.to(weights), masks.to(weights))
    values, nothing = Soft(runner)(gates).detach(), Soft(runner)(torch.zeros_like(gates)).detach()
    gap = float((runner.base.to(nothing.device) - nothing).mean())
    if gap == 0:
        raise InputsError(
            "the metric is the same with all edges and with none, so faithfulness has no meaning: there is nothing to"
            " be faithful to."
        )
    return float((values - nothing).mean()) / gap


class _SpanSlopes(Slopes):
    """Scores [edge, span * span * row]; `seen` is the span of the queries while heads are walked."""

    def __init__(self, pair: GraphPair, more: Written, masks: list[Tensor]) -> None:
        super().__init__(pair, more)
        self.masks, self.seen = masks, -1
        count, rows = len(masks), pair.base.batch
        self.scores = torch.zeros(len(self.graph.edges), count * count * rows, dtype=torch.float64,
                                  device=pair.model.device)  # fmt: skip

    def _heads(
        self, found: SlopeStack, layer: int, hidden: Tensor, heads: list[Tensor], middle: Tensor, slope: Tensor
    ) -> Tensor:
        self._contract(found)
        for t, mask in enumerate(self.masks):
            here = mask[self.rows].to(slope.device)[..., None]
            by_head = torch.autograd.grad(middle, heads, slope * here, retain_graph=True)
            found = SlopeStack(len(self.graph.receivers_of(layer)), hidden)
            self._back(found, layer, hidden, heads, by_head)
            self.seen = t
            self._contract(found)
        self.seen = -1
        (below,) = torch.autograd.grad(middle, hidden, slope, retain_graph=True)
        return below

    def _add(self, edges: Tensor, slopes: Tensor, change: Tensor) -> None:
        found = self.scores.view(len(self.graph.edges), len(self.masks), len(self.masks), -1)
        for s, mask in enumerate(self.masks):
            here = mask[self.rows].to(slopes.device)[None, :, :, None].to(slopes)
            made = torch.bmm((slopes * here).flatten(2).transpose(0, 1), change.flatten(2).permute(1, 2, 0))
            made = made.permute(1, 2, 0).flatten(0, 1).to(self.scores) * self.weight
            found[:, s, s if self.seen < 0 else self.seen, self.rows].index_add_(0, edges.to(made.device), made)


register(
    Method(
        "interp.circuits.span_edges",
        number="estimated effect of an edge at the tokens of a span, from the gradient at the base",
        shown="edges",
        needs=("metric", "source"),
        papers=("2502.04577",),
        passes=lambda t: 3 + 12 * 2,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        example=lambda t: span_edges(
            t.model, base=t.base, source=t.source, metric=t.metric, spans={"last": "last"},
            tower=t.tower.rstrip(".") or None,
        ),
    )
)  # fmt: skip
