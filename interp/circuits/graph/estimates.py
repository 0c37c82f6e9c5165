"""Each method's edge scores [edge, row]; which one is which is said in `interp/circuits/edges.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair, Written, refuse_filled
from interp.circuits.graph.nodes import Graph
from interp.circuits.graph.slopes import Edits, Slopes
from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site
from interp.hooks.slopes.rules import Rules, applicable

RELP = ("ln", "identity", "half")


def eap(pair: GraphPair, more: Written) -> Tensor:
    """The gradient at the base."""
    slopes = Slopes(pair, more)
    slopes.add(first_order=True)
    return slopes.scores


def relp(pair: GraphPair, more: Written) -> tuple[Tensor, Sequence[str]]:
    """The same with the rules of relevance propagation on."""
    module, anatomy = pair.model.module, pair.model.anatomy
    names = applicable(module, anatomy, RELP)
    if not names:
        raise ModelError(
            f"{type(module).__name__} has no norm, activation or gated product for the rules {', '.join(RELP)} to act"
            " on: use method='eap'."
        )
    slopes = Slopes(pair, more, rules=Rules(module, anatomy, names))
    slopes.add(first_order=True)
    return slopes.scores, names


def grid(steps: int) -> list[float]:
    """Midpoints."""
    if steps < 1:
        raise InputsError(f"a path has at least one step, got steps={steps}.")
    return [(k + 0.5) / steps for k in range(steps)]


def eap_ig(pair: GraphPair, more: Written, steps: int) -> Tensor:
    """The mean gradient between the embeddings of base and source."""
    refuse_filled(pair, "method='eap-ig'")
    site = str(Site(pair.blocks.name, None, "embed"))
    start = pair.now(pair.blocks.layers[0], "embed")
    slopes = Slopes(pair, more)
    for alpha in grid(steps):
        slopes.add(edits=_moved(site, start, more.embed, alpha), weight=1 / steps)
    return slopes.scores


def eap_ig_activations(pair: GraphPair, more: Written, steps: int) -> Tensor:
    """The mean gradient while what a group of senders writes goes from base to source: the embedding, the heads of a
    layer, an MLP; each group scores its own edges."""
    refuse_filled(pair, "method='eap-ig-activations'")
    slopes, alphas = Slopes(pair, more), grid(steps)
    for layer, part, change, senders in _groups(pair, more):
        site = str(Site(pair.blocks.name, None, "embed") if part == "embed" else pair.blocks.site(layer, part))
        start = pair.now(layer, part)
        for alpha in alphas:
            slopes.add(edits=_moved(site, start, change, alpha), weight=1 / steps, senders=senders)
    return slopes.scores


def _moved(site: str, start: Tensor, change: Tensor, alpha: float) -> Edits:
    """Put a site part of the way from base to source."""
    return lambda rows: [Set(site, start[rows] + alpha * change[rows].to(start.dtype))]


def _groups(pair: GraphPair, more: Written) -> Iterator[tuple[int, str, Tensor, set[int]]]:
    yield pair.blocks.layers[0], "embed", more.embed, {0}
    for layer in pair.blocks.layers:
        heads = pair.graph.heads_of(layer)
        yield layer, "z", more.z[layer], set(range(heads.start, heads.stop))
        if layer in more.mlp:
            yield layer, "mlp_write", more.mlp[layer], {pair.graph.mlp_of(layer)}


def flow(pair: GraphPair) -> Tensor:
    """`max(0, |in|_1 - |in - write|_1)`, over its sum over senders, averaged over real positions."""
    sites = Writes.sites(pair.model.anatomy, pair.blocks.tower)
    tape = pair.model.run(pair.base, record=list(dict.fromkeys([*sites, *_residuals(pair)])))
    pair.passes += 1
    writes, graph, real = Writes(pair.model.module, tape, pair.blocks.tower), pair.graph, pair.valid.double().cpu()
    writes.check()
    read = {site: _readers(pair, site) for site in _residuals(pair)}
    near = {site: torch.zeros(*real.shape, len(graph.senders), dtype=torch.float64) for site in read}
    for u, (_, write) in enumerate(writes.walk()):
        for site, readers in read.items():
            if bool(graph.exists[u, readers[0]]):
                into = tape[site].double()
                near[site][:, :, u] = (
                    (into.abs().sum(-1) - (into - write.to(into.device)).abs().sum(-1)).clamp(min=0).cpu()
                )
    scores = torch.zeros(len(real), len(graph.senders), len(graph.receivers), dtype=torch.float64)
    for site, readers in read.items():
        share = near[site] / near[site].sum(-1, keepdim=True).clamp(min=1e-300)
        mean = (share * real[..., None]).sum(1) / real.sum(1)[:, None]
        scores[:, :, readers] = mean[..., None].expand(-1, -1, len(readers))
    return by_edge(graph, scores)


def by_edge(graph: Graph, scores: Tensor) -> Tensor:
    """[edge, row] of [row, sender, receiver]."""
    senders, receivers = zip(*graph.edges, strict=True)
    return scores[:, list(senders), list(receivers)].T.contiguous()


def _residuals(pair: GraphPair) -> list[Site]:
    """Everything that is read."""
    found = [pair.blocks.site(layer, "resid_pre") for layer in pair.blocks.layers]
    found += [pair.blocks.site(s.index, "resid_mid") for s in pair.graph.layers if s.mlp and not s.parallel]
    return [*found, pair.blocks.site(pair.blocks.layers[-1], "resid_post")]


def _readers(pair: GraphPair, site: Site) -> list[int]:
    """The receivers that read a residual."""
    if site.component == "resid_post":
        return [len(pair.graph.receivers) - 1]
    assert site.layer is not None
    sequential = not pair.graph.by_index[site.layer].parallel
    found = []
    for v, receiver in enumerate(pair.graph.receivers):
        mid = receiver.component == "mlp_in" and sequential
        if receiver.layer == site.layer and mid == (site.component == "resid_mid"):
            found.append(v)
    return found
