"""Edge attribution: how much of a metric runs along each connection between embedding, heads, MLPs and logits.

A receiver v (a head's q, k or v input, an MLP, the logits) reads in_v, the sum of what the senders before it wrote; the
effect of an edge u -> v is `metric(patched) - metric(base)` when v alone reads u's source value. Scores are effects
put into the base; swap base and source for the other direction.

    eap      sum over positions of <write_u(source) - write_u(base), d metric / d in_v at the base>: attribution
             patching of edges (Syed et al. 2023, arXiv 2310.10348)
    eap-ig   the same with the mean gradient over runs whose embedding is between base and source, all else following
             (Hanna et al. 2024, arXiv 2403.17806); midpoints (k + 1/2) / steps, where the paper's code takes k / steps
    eap-ig-activations   the mean gradient while the sender itself goes from base to source, the heads of a layer
             together and the rest of the run following (Marks et al. 2024, arXiv 2403.19647, as the MIB benchmark,
             2504.13151, has it for edges; there every interpolation scores all edges, here only those of its senders)
    relp     eap with the backward rules ln, identity and half (arXiv 2508.21258; see `interp.attribute`)
    exact    each edge patched alone, norms recomputed
    eap-gp   the mean gradient along a path of its own (`discovery/gradient_path.py`)
    clean-corrupted  the mean gradient of both ends (`discovery/both_ends.py`)
    cd-t     what of the metric came from u through v's value, MLP or logits, with patterns and the scales of norms held
             and constants shared (`discovery/contextual.py`)
    flow     max(0, |in_v|_1 - |in_v - write_u|_1) over its sum over u, averaged over positions: information flow routes
             (Ferrando and Voita 2024, arXiv 2403.00824); needs no source and no gradient, and is never negative

in_v is read before v's norm, so the norm's derivative counts. A kv head's score is the sum over the query heads of its
group; weights are not copied. Behind a norm after the attention (Gemma-2) a head's write is what that norm makes of it,
to first order. Cost: eap and relp two recorded passes, one more with a graph at the logits, and a walk back that runs
each block once more, takes every head's q, k and v gradient through its projection, and holds what every layer's heads
write more against what every later layer reads, d x d products per token and pair of layers; eap-ig that walk per step,
eap-ig-activations per step and group of senders, exact the blocks above the receiver per edge, flow two passes and a
sum over d per sender, token and residual that is read. Where a block's graph is large, rows are walked a few at a time,
with a pass more (`circuits/graph/changes.py`). Memory: the changes of z and of the MLP's write of every layer, and for
the rows that are walked one residual per layer, the graph of one block, and what one layer's receivers and heads have;
exact and flow keep whole runs. Limits: towers whose blocks can be run one by one and add to one residual;
first-order scores say 0 where the metric, a softmax or an activation is flat.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from interp.cells.calls import CHUNK, JOURNAL, answered, frame_without, product_of
from interp.cells.journal import Values
from interp.cells.shards import Asked, Frame, Shard, ShardDone, asked
from interp.cells.work import Builder, Floors
from interp.circuits.found.edge_scores import Edges
from interp.circuits.graph import estimates
from interp.circuits.graph.changes import Filled, GraphPair, Written
from interp.circuits.graph.exact import Wires, exact
from interp.circuits.graph.slopes import Scored
from interp.contents import named
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about, refuse_unwritten
from interp.records import Kind, Method, Passes, Variant, register, variants

if TYPE_CHECKING:
    from interp.model import Model

STEPS = 10
"""Points of a path."""


@overload
def edges(model: Model, *, shard: None = None, **how: Any) -> Edges: ...
@overload
def edges(model: Model, *, shard: tuple[int, int] | str, **how: Any) -> ShardDone: ...


@hands_over  # type: ignore[misc]  # the overloads leave the rest to this
@torch.enable_grad()
def edges(
    model: Model,
    *,
    base: Any,
    source: Any | Filled = None,
    metric: Metric,
    method: str = "eap-ig",
    steps: int | None = None,
    tower: str | None = None,
    out: str | Path | None = None,
    shard: Asked = None,
    engine: Any = None,
) -> Edges | ShardDone:
    """The score of every edge, per example. `source` is a run that lines up with the base, "zero" or "mean"; `steps`
    are those of a path, 10 unless the method has another number. `out=` is a directory for the scores; method="exact"
    writes them while it runs, and if the call is killed, make it again to continue. Its edges can be computed in parts
    with `shard=(0, 4)` (`interp.scale.merge`), and by `engine=` (`interp/cells/work.py`)."""
    mine = asked(shard, out)
    known = variants("interp.edges", room="circuits")
    if method not in known:
        raise InputsError(f"no edge method {method!r}; there are {', '.join(known)}.")
    if source is None and not known[method].how["alone"]:
        raise InputsError(f"method={method!r} compares two runs: give source=, a run, 'zero' or 'mean'.")
    pair = GraphPair(model, base, base if source is None else source, metric, tower)
    taken = known[method].how.get("steps", STEPS) if steps is None else steps
    if method != "exact" and (mine is not None or engine is not None):
        raise InputsError(f"shard= and engine= are for method='exact', whose edges are cells; got {method!r}.")
    how = {"method": method, "metric": metric_name(metric),
           "source": "none" if source is None else source if isinstance(source, str) else "run"}  # fmt: skip
    if method == "exact" and (out is not None or engine is not None):
        return _kept(pair, how, out, mine, engine)
    found, score, other, said = known[method].run(pair, taken)
    made = _made(pair, found, score, other, {**how, "passes": pair.passes, **said})
    if out is not None:
        made.save(out)
    return made


def _made(pair: GraphPair, found: Tensor, score: Tensor, other: Tensor | None, said: dict[str, Any]) -> Edges:
    order = ("method", "metric", "passes", *(name for name in said if name not in ("method", "metric", "source")))
    meta = {**about(pair.model.module, pair.base), **{name: said[name] for name in (*order, "source")}}
    return Edges(pair.graph, found.cpu(), score.double().cpu(), None if other is None else other.double().cpu(), meta)


def _kept(pair: GraphPair, how: dict[str, Any], out: str | Path | None, shard: Shard | None, engine: Any) -> Any:
    """Exactly, edge by edge, written down."""
    model, source = pair.model, pair.source
    refuse_unwritten(model.module)
    tower = pair.blocks.tower.name
    task = {"model": about(model.module, pair.base), **how, "metric": named(pair.metric), "tower": tower,
            "source": source if isinstance(source, str) else source.digest()}  # fmt: skip
    given = {"base": pair.base, "source": source, "metric": pair.metric, "tower": tower}
    product = None if out is None else product_of(Path(out) / JOURNAL, task, model)
    more, score, other = pair.changes()
    work = Wires(pair, more, task, product=product, budget=CHUNK,
                 recipe=Builder("interp.circuits.edges:built", {**given, "product": product}))  # fmt: skip
    bare = _made(pair, torch.zeros(0, 0), score, other, {**how, "passes": pair.passes})
    frame = frame_without(bare, ["values"], places=work.places.tolist())
    return answered("interp.edges", work, frame, result, out=out, shard=shard, engine=engine)


def built(model: Model, *, base: Any, source: Any, metric: Metric, tower: str, product: str | None) -> Wires:
    """The edges as work in another process."""
    pair = GraphPair(model, base, source, metric, tower)
    return Wires(pair, pair.changes()[0], product=product, budget=CHUNK)


def result(frame: Frame, values: Values, floors: Floors) -> Edges:
    """What the edges come to, without the model."""
    return Edges.restored(dict(frame.facts), {**frame.tensors, "values": values[""][list(frame.facts["places"])]})


def _flow(pair: GraphPair, steps: int) -> Scored:
    return estimates.flow(pair), pair.judge([pair.blocks.record(pair.kwargs(), columns=pair.columns)]), None, {}


def _eap(pair: GraphPair, steps: int) -> Scored:
    more, score, other = pair.changes()
    return estimates.eap(pair, more), score, other, {}


def _relp(pair: GraphPair, steps: int) -> Scored:
    more, score, other = pair.changes()
    found, rules = estimates.relp(pair, more)
    return found, score, other, {"rules": tuple(rules)}


def _exact(pair: GraphPair, steps: int) -> Scored:
    more, score, other = pair.changes()
    return exact(pair, more), score, other, {}


def _along(way: Callable[[GraphPair, Written, int], Tensor]) -> Callable[[GraphPair, int], Scored]:
    def run(pair: GraphPair, steps: int) -> Scored:
        more, score, other = pair.changes()
        said = {"steps": steps, "grid": [round(alpha, 6) for alpha in estimates.grid(steps)]}
        return way(pair, more, steps), score, other, said

    return run


_UNFIT: dict[Kind, str] = {"encoder-decoder": "the blocks of its decoder have several attentions"}
register(
    Method(
        "interp.edges",
        number="effect on the metric when a receiver alone reads the source's value of a sender, in the metric's unit",
        shown="edges",
        needs=("metric", "source"),
        unfit=_UNFIT,
        passes=lambda t: 3 + 12 * 2,
        example=lambda t, **how: edges(
            t.model, base=t.base, source=t.source, metric=t.metric, tower=t.tower.rstrip(".") or None,
            **{"steps": 2, **how},
        ),
    )
)  # fmt: skip
_PASSES: dict[str, Passes] = {
    "eap": lambda t: 3 + 12, "relp": lambda t: 3 + 12, "flow": lambda t: 3, "exact": lambda t: t.edges + 5,
    "eap-ig-activations": lambda t: 3 + 12 * 2 * (1 + 2 * t.layers),
}  # fmt: skip
_CHOICES: tuple[tuple[str, str, Callable[[GraphPair, int], Scored], tuple[str, ...]], ...] = (
    ("eap", "estimated effect, from the gradient at the base", _eap, ("2310.10348",)),
    ("eap-ig", "estimated effect, from the mean gradient between base and source", _along(estimates.eap_ig),
     ("2403.17806", "2504.13151")),
    ("eap-ig-activations", "estimated effect, from the mean gradient while the sender itself moves",
     _along(estimates.eap_ig_activations), ("2403.19647", "2504.13151")),
    ("relp", "estimated effect, from a gradient with relevance rules", _relp, ("2508.21258",)),
    ("exact", "exact effect of each edge, patched alone", _exact, ()),
    ("flow", "share of what is read that the sender wrote, never negative", _flow, ("2403.00824",)),
)  # fmt: skip
for _order, (_name, _number, _run, _papers) in enumerate(_CHOICES):
    register(
        Variant(
            "interp.edges", _name, number=_number, run=_run, order=_order, papers=_papers, signed=_name != "flow",
            how={"alone": _name == "flow"}, passes=_PASSES.get(_name), unfit=_UNFIT,
        )
    )  # fmt: skip
