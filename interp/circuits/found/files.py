"""Circuit files of EAP-IG and of the MIB benchmark, read and written: `.json`, and `.pt` without running a pickle.

JSON holds `cfg`, `nodes` {name: {in_graph}} and `edges` {"a0.h1->m2": {score, in_graph}}; the `.pt` file a dict of
`cfg`, `src_nodes`, `dst_nodes`, `edges_scores`, `edges_in_graph` and `nodes_in_graph`. Their graphs have a k and a v
input per query head: written, a kv head's edge goes to each head of its group with its share of the score; read with
`graph=` of the model, the group's scores are summed and one edge of the group is enough. Their readers need
`d_model` in `cfg`, which is there where the circuit's graph is a model's. Their `input` is what tokens alone give;
ours, `embed`, has learned positions in it as well. Runs that line up have the same positions, so circuits with
resampled values are the same for both; zeros and means of `embed` take positions away, which theirs do not
(`interp.faithfulness(embed="tokens")` leaves them too). Limits: neuron circuits are not read.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.circuits.found.kit import as_kit, from_kit
from interp.circuits.found.tracer import as_tracer, from_tracer
from interp.circuits.graph.nodes import Graph, LayerShape
from interp.hooks.sealed import MISREAD, understood
from interp.hooks.sites import Site
from interp.reading import FormatError

Form = Literal["eap-ig", "circuit-kit", "circuit-tracer"]
"""Whose file it is: EAP-IG's and MIB's, `kit.py`, `tracer.py`."""
MOST = 1000
"""Layers, and heads of a layer, that a file may speak of."""


def read_edges(path: str | Path, *, graph: Graph | None = None) -> tuple[Graph, Tensor, Tensor]:
    """The graph of a file, which edges are in the circuit and their scores [sender, receiver]; of `graph` if given."""
    file = Path(path)
    said = _read(file)
    with understood(file):
        if "links" in said:
            own, mask, scores = from_tracer(file, said)
        else:
            said = from_kit(file, said) if "metadata" in said else said
            own = _graph(file, said["cfg"])
            mask, scores = _from_json(file, said, own) if file.suffix == ".json" else _from_pt(file, said, own)
        mask &= own.exists
    return (own, mask, scores) if graph is None or graph == own else _regrouped(file, own, mask, scores, graph)


def write_edges(
    file: Path, graph: Graph, mask: Tensor, scores: Tensor | None, *, form: Form = "eap-ig", tokens: Sequence[str] = ()
) -> Path:
    """Write a circuit, `.json` or (EAP-IG's) `.pt` by the file's name; the file appears whole or not at all."""
    if form not in get_args(Form):
        raise FormatError(f"{file}: circuits are written for {', '.join(get_args(Form))}, got {form!r}")
    if file.suffix not in ((".json", ".pt") if form == "eap-ig" else (".json",)):
        raise FormatError(f"{file}: circuits are written as .json, and EAP-IG's as .pt too")
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".part")
    if form == "circuit-tracer":
        scratch.write_text(json.dumps(as_tracer(graph, mask, scores, tokens)))
    else:
        _write(scratch, graph, mask, scores, file.suffix, form)
    scratch.rename(file)
    return file


def _write(scratch: Path, graph: Graph, mask: Tensor, scores: Tensor | None, suffix: str, form: Form) -> None:
    known = torch.zeros(mask.shape, dtype=torch.float64) if scores is None else scores
    apart = _apart(graph)
    own, into, share = _ungrouped(graph)
    held, values = mask[:, into], known.nan_to_num(0.0)[:, into] * share
    if suffix == ".pt":
        torch.save(_as_pt(own, apart, held, values), scratch)
        return
    plain = _as_json(own, apart, held, values)
    scratch.write_text(json.dumps(as_kit(plain) if form == "circuit-kit" else plain))


def name(site: Site, *, reads: bool = False) -> str:
    """A node by its name there: `input`, `a0.h1`, `a0.h1<q>`, `m0`, `logits`."""
    if site.layer is None:
        return "logits" if site.component == "logits" else "input"
    if site.heads is None:
        return f"m{site.layer}"
    return f"a{site.layer}.h{site.heads[0]}" + (f"<{site.component[0]}>" if reads else "")


def _read(file: Path) -> dict[str, Any]:
    if file.suffix not in (".json", ".pt"):
        raise FormatError(f"{file}: expected a .json or .pt circuit file")
    try:
        said = json.loads(file.read_text()) if file.suffix == ".json" else torch.load(file, weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, struct.error, *MISREAD) as reason:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise FormatError(f"{file}: not a circuit file: {first}") from reason
    needed = ("cfg", "edges_scores", "edges_in_graph") if file.suffix == ".pt" else _needed(said)
    missing = [key for key in needed if not isinstance(said, dict) or key not in said]
    if missing:
        raise FormatError(f"{file}: expected {', '.join(needed)}, got no {missing[0]!r}")
    return dict(said)


def _needed(said: Any) -> tuple[str, ...]:
    """What a JSON file must hold, by whose it is."""
    if isinstance(said, dict) and "links" in said:
        return "nodes", "links"
    return ("metadata", "edges") if isinstance(said, dict) and "metadata" in said else ("cfg", "nodes", "edges")


def _graph(file: Path, cfg: Mapping[str, Any]) -> Graph:
    missing = [key for key in ("n_layers", "n_heads") if type(cfg.get(key)) is not int or not 0 < cfg[key] <= MOST]
    if missing:
        raise FormatError(f"{file}: expected a whole number {missing[0]!r} from 1 to {MOST} in 'cfg'")
    heads, parallel = cfg["n_heads"], bool(cfg.get("parallel_attn_mlp"))
    width = cfg.get("d_model")
    layers = tuple(LayerShape(n, heads, heads, True, parallel) for n in range(cfg["n_layers"]))
    return Graph(None, layers, width if type(width) is int and width > 0 else None)


def _from_json(file: Path, said: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor]:
    names = {f"{name(graph.senders[u])}->{name(graph.receivers[v], reads=True)}": (u, v) for u, v in graph.edges}
    mask, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape, dtype=torch.float64)
    for key, edge in said["edges"].items():
        if key not in names:
            raise FormatError(f"{file}: no edge {key!r} in a graph of {len(graph.layers)} layers")
        mask[names[key]] = bool(edge["in_graph"])
        scores[names[key]] = float(edge.get("score") or 0.0)
    return mask, scores


def _from_pt(file: Path, said: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor]:
    mask, scores = said["edges_in_graph"], said["edges_scores"]
    for found in (mask, scores):
        if not torch.is_tensor(found) or found.shape != graph.exists.shape:
            raise FormatError(f"{file}: expected edges of shape {list(graph.exists.shape)} for its cfg")
    return mask.bool(), scores.double()


def _apart(graph: Graph) -> list[str]:
    return [name(site) for site in graph.senders]


def _ungrouped(graph: Graph) -> tuple[Graph, list[int], Tensor]:
    """The graph with a k and a v input per query head, which receiver of ours each of its own is, and its share."""
    layers = tuple(LayerShape(s.index, s.heads, s.heads, s.mlp, s.parallel) for s in graph.layers)
    own = Graph(None, layers, graph.width)
    into = [graph.receiver_at[site] for site in _ours(own, graph)]
    share = torch.tensor([1 / into.count(v) for v in into], dtype=torch.float64)
    return own, into, share


def _ours(own: Graph, graph: Graph) -> Iterator[Site]:
    for site in own.receivers:
        if site.layer is None or site.heads is None or site.component == "q_in":
            yield Site(graph.tower if site.layer is not None else None, site.layer, site.component, site.heads)
            continue
        shape = graph.by_index[site.layer]
        yield Site(graph.tower, site.layer, site.component, (site.heads[0] * shape.kv_heads // shape.heads,))


def _regrouped(file: Path, own: Graph, held: Tensor, values: Tensor, graph: Graph) -> tuple[Graph, Tensor, Tensor]:
    apart, into, _ = _ungrouped(graph)
    if apart.layers != own.layers:
        raise FormatError(f"{file}: its graph has other layers or heads than the one given")
    mask, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape, dtype=torch.float64)
    for theirs, ours in enumerate(into):
        mask[:, ours] |= held[:, theirs]
        scores[:, ours] += values[:, theirs]
    return graph, mask & graph.exists, scores


def _cfg(graph: Graph) -> dict[str, Any]:
    heads = {layer.heads for layer in graph.layers}
    if len(heads) > 1 or not all(layer.mlp for layer in graph.layers):
        raise FormatError("these files hold graphs with as many heads in every layer and an MLP in each")
    width = {} if graph.width is None else {"d_model": graph.width}
    return {
        "n_layers": len(graph.layers),
        "n_heads": heads.pop(),
        "parallel_attn_mlp": graph.layers[0].parallel,
        **width,
    }


def _as_json(own: Graph, senders: list[str], mask: Tensor, scores: Tensor) -> dict[str, Any]:
    listened = mask.any(1).tolist()
    nodes = {one: {"in_graph": bool(listened[n])} for n, one in enumerate(senders)} | {"logits": {"in_graph": True}}
    edges = {
        f"{senders[u]}->{name(own.receivers[v], reads=True)}": {
            "score": float(scores[u, v]), "in_graph": bool(mask[u, v])
        }
        for u, v in own.edges
    }  # fmt: skip
    return {"cfg": _cfg(own), "nodes": nodes, "edges": edges}


def _as_pt(own: Graph, senders: list[str], mask: Tensor, scores: Tensor) -> dict[str, Any]:
    receivers = [name(site, reads=True) for site in own.receivers]
    return {"cfg": _cfg(own), "src_nodes": senders, "dst_nodes": receivers, "edges_scores": scores.float(),
            "edges_in_graph": mask.clone(), "nodes_in_graph": mask.any(1)}  # fmt: skip
