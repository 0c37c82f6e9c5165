"""Automatic circuit discovery: edges are taken away one by one, and stay away where that costs less than a threshold.

Conmy et al. 2023 (arXiv 2304.14997). Receivers are visited from the logits down, each one's senders from the last to
the first; an edge is patched with the source's value, together with all edges that have gone already, and goes itself
where `D(with it gone) - D(before) < threshold`, D being minus the mean metric, signed so that the base is what the
circuit shall do. `interp.metrics.KL.to(base logits)` as metric is the paper's own divergence. Cost: per edge whose end
the circuit still listens to, the blocks from its receiver on (earlier ones compute what the base does); edges into
nodes that nobody listens to change nothing and go without a run. Limits: greedy, and depends on that order; one edge at
a time, so of two edges that can replace each other the one that is visited first is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from interp.circuits.found.circuit import Circuit
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Ablation, Runner
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model


@hands_over
def acdc(
    model: Model,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    threshold: float,
    ablation: Ablation = "resample",
    tower: str | None = None,
) -> Circuit:
    """The circuit that is left, pruned; `.meta["passes"]` counts patched passes and `.scores` holds each edge's rise of
    D when it was visited, NaN where nobody listened."""
    if not threshold > 0:
        raise InputsError(f"a threshold is positive: edges that change D by less go; got {threshold!r}.")
    pair = GraphPair(model, base, source, metric, tower)
    runner, graph = Runner(pair, ablation), pair.graph
    sign = -1.0 if float(runner.base.mean()) >= float(runner.source.double().mean()) else 1.0
    kept, scores = graph.exists.clone(), torch.full(graph.exists.shape, torch.nan, dtype=torch.float64)
    before = sign * float(runner(kept).mean())
    for v in reversed(range(len(graph.receivers))):
        start = graph.receivers[v].layer
        for u in reversed(graph.exists[:, v].nonzero()[:, 0].tolist()):
            heard = v == len(graph.receivers) - 1 or bool((kept.any(1) & graph.feeds[v]).any())
            without = kept.clone()
            without[u, v] = False
            now = before
            if heard:
                now = sign * float(runner(without, start=graph.layers[-1].index + 1 if start is None else start).mean())
                scores[u, v] = now - before
            if now - before < threshold:
                kept, before = without, now
    meta = {
        **about(model.module, pair.base), "method": "acdc", "threshold": threshold, "metric": metric_name(metric),
        "ablation": ablation, "passes": runner.count, "found_on": pair.base.digest(), "unpruned": int(kept.sum()),
    }  # fmt: skip
    return Circuit(graph, graph.pruned(kept), "edge", meta, scores)


register(
    Method(
        "interp.circuits.acdc",
        number="which edges stay: those whose loss is at least the threshold, in the metric's unit",
        shown="edges",
        needs=("metric", "source"),
        passes=lambda t: t.edges + 3,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        values=None,
        example=lambda t: acdc(
            t.model, base=t.base, source=t.source, metric=t.metric, threshold=0.1, tower=t.tower.rstrip(".") or None
        ),
    )
)
