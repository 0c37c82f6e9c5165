"""Circuit artifacts of CircuitKIT (schema 1.0), written and read: nodes and edges with weights from 0 to 1.

`metadata` names model, task and method, `nodes` hold layer, kind (`attn_head mlp_layer embedding residual`), index and
importance, `edges` source, target and weight, all by id. Ids are EAP-IG's names, `a0.h1->m2`, since the schema leaves
them free; which input of a head an edge ends in is in the edge's id alone. Weights there are magnitudes over the
largest one, so signs and sizes do not come back. `discovery_method` is one of a list there, and ours says "eap-ig"
whatever it was: who found the circuit is not in this file. Limits: kv heads are written per query head, as in
`files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.reading import FormatError


def as_kit(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content, from that of EAP-IG's file."""
    cfg = plain["cfg"]
    kept = [(name, abs(one["score"])) for name, one in plain["edges"].items() if one["in_graph"]]
    most = max((score for _, score in kept), default=0.0) or 1.0
    made: dict[str, Any] = {}
    nodes: dict[str, dict[str, Any]] = {}
    for name, score in kept:
        sender, _, receiver = name.partition("->")
        into = receiver.partition("<")[0]
        made[name] = {"src_id": sender, "dst_id": into, "weight": score / most, "attribution": "direct"}
        for node in (sender, into):
            before = nodes.get(node, {}).get("importance", 0.0)
            nodes[node] = _node(node, max(before, score / most), cfg["n_layers"])
    metadata = {"model_id": "", "discovery_method": "eap-ig", "task": "", "dataset": "", "granularity": "head",
                "threshold": 0.0, "timestamp": "", "algorithm_params": dict(cfg)}  # fmt: skip
    return {"version": "1.0", "metadata": metadata, "nodes": nodes, "edges": made}


def from_kit(file: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """What EAP-IG's file of the same circuit would say."""
    params = said["metadata"].get("algorithm_params") or {}
    if "n_heads" not in params or "n_layers" not in params:
        raise FormatError(
            f"{file}: metadata.algorithm_params has no n_heads and n_layers, so that the graph is not known; files that"
            " were written by Circuit.save have them."
        )
    edges = {name: {"score": float(one["weight"]), "in_graph": True} for name, one in said["edges"].items()}
    return {"cfg": dict(params), "nodes": {}, "edges": edges}


def _node(node: str, importance: float, layers: int) -> dict[str, Any]:
    head = re.fullmatch(r"a(\d+)\.h(\d+)", node)
    if head:
        layer, index, kind = int(head[1]), int(head[2]), "attn_head"
    elif node.startswith("m"):
        layer, index, kind = int(node[1:]), 0, "mlp_layer"
    else:
        layer, index, kind = (0, 0, "embedding") if node == "input" else (layers, 0, "residual")
    return {"layer_idx": layer, "node_type": kind, "index": index, "importance": importance, "name": node}
