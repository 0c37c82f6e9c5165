"""Graph files of circuit-tracer's viewer, written and read: a circuit as nodes and links in plain JSON.

The viewer knows `metadata`, `qParams`, `nodes` (an id `layer_feature_position`, a layer, a position, a kind, a text)
and `links` (source, target, weight). A head is the feature of its number, an MLP the one after the last head, at the
position that is read; they are of the kind the viewer draws as features, and their text says what they are. Links keep
which input of a head they end in under `receiver`, which the viewer does not look at and reading back needs. Limits:
our circuits have no positions, so all nodes are at one position; the viewer cannot show examples of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.circuits.graph.nodes import Graph
from interp.hooks.errors import SiteError
from interp.hooks.sites import Site
from interp.reading import FormatError

FEATURE = "cross layer transcoder"


def as_tracer(graph: Graph, mask: Tensor, scores: Tensor | None, tokens: Sequence[str]) -> dict[str, Any]:
    """The file's content; `tokens` are those of a prompt, to be shown below the graph."""
    shown = list(tokens) or ["?"]
    at = len(shown) - 1
    edges = [(u, v) for u, v in graph.edges if bool(mask[u, v])]
    ids = {_name(graph, site): _id(graph, site, at) for site in (*graph.senders, graph.receivers[-1])}
    ends = {v: _writer(graph, graph.receivers[v]) for _, v in edges}
    used = dict.fromkeys([_name(graph, graph.senders[u]) for u, _ in edges] + [ends[v] for _, v in edges])
    links = [
        {"source": ids[_name(graph, graph.senders[u])], "target": ids[ends[v]], "weight": _score(scores, u, v),
         "sender": str(graph.senders[u]), "receiver": str(graph.receivers[v])}
        for u, v in edges
    ]  # fmt: skip
    metadata = {"slug": "circuit", "scan": "heads", "transcoder_list": [], "prompt_tokens": shown,
                "prompt": "".join(shown), "node_threshold": None, "schema_version": 1}  # fmt: skip
    params = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    nodes = [_node(graph, name, ids[name], at) for name in used]
    return {"metadata": metadata, "qParams": params, "nodes": nodes, "links": links, "graph": graph.described()}


def from_tracer(file: Path, said: Mapping[str, Any]) -> tuple[Graph, Tensor, Tensor]:
    """The circuit of a file that `as_tracer` wrote."""
    if "graph" not in said:
        raise FormatError(
            f"{file}: a graph of transcoder features, not of heads: only graphs that were written by Circuit.save are"
            " read as circuits."
        )
    graph = Graph.read(said["graph"])
    mask, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape, dtype=torch.float64)
    for link in said["links"]:
        try:
            edge = graph.edge(link["sender"], link["receiver"])
        except SiteError as reason:
            raise FormatError(f"{file}: {reason}") from reason
        mask[edge], scores[edge] = True, float(link["weight"])
    return graph, mask, scores


def _score(scores: Tensor | None, u: int, v: int) -> float:
    return 1.0 if scores is None else float(scores[u, v].nan_to_num(0.0))


def _writer(graph: Graph, receiver: Site) -> str:
    """The node that reads there: a kv head's input is shown at the first head of its group."""
    if receiver.layer is None:
        return "logits"
    if receiver.heads is None:
        return str(Site(graph.tower, receiver.layer, "mlp_write"))
    shape, head = graph.by_index[receiver.layer], receiver.heads[0]
    group = 1 if receiver.component == "q_in" else shape.heads // shape.kv_heads
    return str(Site(graph.tower, receiver.layer, "attention", (head * group,)))


def _name(graph: Graph, site: Site) -> str:
    return "logits" if site.component == "logits" else str(site)


def _id(graph: Graph, site: Site, at: int) -> str:
    if site.component == "logits":
        return f"{len(graph.layers) + 1}_0_{at}"
    if site.layer is None:
        return f"E_0_{at}"
    feature = graph.by_index[site.layer].heads if site.heads is None else site.heads[0]
    return f"{site.layer}_{feature}_{at}"


def _node(graph: Graph, name: str, node: str, at: int) -> dict[str, Any]:
    layer, feature, _ = node.split("_")
    kind = "logit" if name == "logits" else "embedding" if layer == "E" else FEATURE
    return {
        "node_id": node, "feature": int(feature), "layer": layer, "ctx_idx": at, "feature_type": kind,
        "token_prob": 0.0, "is_target_logit": kind == "logit", "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": node,
        "clerp": name, "influence": None, "activation": None,
    }  # fmt: skip
