"""Edge attribution: how much of a metric runs along each connection between embedding, heads, MLPs and logits.

A receiver v (a head's q, k or v input, an MLP, the logits) reads in_v, the sum of what the senders before it wrote; the
effect of an edge u -> v is `metric(patched) - metric(base)` when v alone reads u's source value. Scores are effects
put into the base; swap base and source for the other direction.

    eap      sum over positions of <write_u(source) - write_u(base), d metric / d in_v at the base>: attribution
             patching of edges (Syed et al. 2023, arXiv 2310.10348)
    eap-ig   the same with the mean gradient over runs whose embedding lies between base and source, all else following
             (Hanna et al. 2024, arXiv 2403.17806); midpoints (k + 1/2) / steps, where the paper's code takes k / steps
    eap-ig-activations   the mean gradient while the sender itself goes from base to source, the heads of a layer
             together and the rest of the run following (Marks et al. 2024, arXiv 2403.19647, as the MIB benchmark,
             2504.13151, has it for edges; there every interpolation scores all edges, here only those of its senders)
    relp     eap with the backward rules ln, identity and half (arXiv 2508.21258; see `interp.attribute`)
    exact    every edge patched by itself, norms recomputed
    flow     max(0, |in_v|_1 - |in_v - write_u|_1) over its sum over u, averaged over positions: information flow routes
             (Ferrando and Voita 2024, arXiv 2403.00824); needs no source and no gradient, and is never negative

in_v is read before v's norm, so the norm's derivative counts. A kv head's score is the sum over the query heads of its
group; weights are not copied. Behind a norm after the attention (Gemma-2) a head's write is what that norm makes of it,
to first order. Cost: eap and relp two recorded passes, one more with a graph at the logits, and a walk back that runs
each block once more and takes every head's q, k and v gradient through its projection; eap-ig that walk per step,
eap-ig-activations per step and group of senders, exact the blocks above the receiver per edge, flow one pass. Where a
block's graph is large, rows are walked a few at a time, with a pass more (`circuits/changes.py`). Memory: the changes
of z and of the MLP's write of every layer, and for the rows that are walked one residual per layer and the graph of one
block; exact and flow keep whole runs. Limits: towers whose blocks can be run one by one and add to one residual;
first-order scores say 0 where the metric, a softmax or an activation is flat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.circuits.edge_scores import Edges
from interp.circuits.graph import estimates
from interp.circuits.graph.changes import Filled, GraphPair
from interp.circuits.graph.exact import exact
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.provenance import about

if TYPE_CHECKING:
    from interp.model import Model

METHODS = ("eap", "eap-ig", "eap-ig-activations", "relp", "exact", "flow")


def edges(
    model: Model,
    *,
    base: Any,
    source: Any | Filled = None,
    metric: Metric,
    method: str = "eap-ig",
    steps: int = 10,
    tower: str | None = None,
) -> Edges:
    """The score of every edge, per example. `source` is a run that lines up with the base, "zero" or "mean"."""
    if method not in METHODS:
        raise InputsError(f"no edge method {method!r}; there are {', '.join(METHODS)}.")
    if source is None and method != "flow":
        raise InputsError(f"method={method!r} compares two runs: give source=, a run, 'zero' or 'mean'.")
    pair = GraphPair(model, base, base if source is None else source, metric, tower)
    found, score, other, said = _scored(pair, method, steps)
    meta = {
        **about(model.module, pair.base), "method": method, "metric": repr(metric), "passes": pair.passes, **said,
        "source": "none" if source is None else source if isinstance(source, str) else "run",
    }  # fmt: skip
    return Edges(pair.graph, found.cpu(), score.double().cpu(), None if other is None else other.double().cpu(), meta)


def _scored(pair: GraphPair, method: str, steps: int) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """Scores, the metric of base and source, and what a method has to say."""
    if method == "flow":
        return estimates.flow(pair), pair.judge([pair.walk.run(pair.kwargs(), columns=pair.columns)]), None, {}
    more, score, other = pair.changes()
    if method == "eap":
        return estimates.eap(pair, more), score, other, {}
    if method == "relp":
        found, rules = estimates.relp(pair, more)
        return found, score, other, {"rules": tuple(rules)}
    if method == "exact":
        return estimates.by_edge(pair.graph, exact(pair, more)), score, other, {}
    along = estimates.eap_ig if method == "eap-ig" else estimates.eap_ig_activations
    said = {"steps": steps, "grid": [round(alpha, 6) for alpha in estimates.grid(steps)]}
    return along(pair, more, steps), score, other, said
