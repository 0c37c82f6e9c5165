"""Circuits and curves as the page draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from interp.explorer.payload.plain import ExplorerError, columns_of, only, pairs, plain
from interp.explorer.payload.scores import Places

CURVE = {"title", "about", "x_title", "y_title", "log_x", "lines", "levels"}
LINE = {"name", "x", "y", "low", "high", "kind"}
LINES = ("line", "points", "baseline")
NODE = re.compile(r"^(?:(?P<tower>[a-z_]+)\.)?L(?P<layer>\d+)\.(?:(?P<kind>[HK])(?P<head>\d+)|mlp)")


def circuit(given: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Edges with the boxes they run between; what goes into a kv head goes into the heads of its group that speak."""
    only(given, {"edges", "title", "about"}, "circuit")
    names, columns = columns_of(given["edges"], "circuit.edges")
    if not {"sender", "receiver"} <= set(names):
        raise ExplorerError(f"circuit.edges has sender and receiver (and score), got {', '.join(names)}.")
    table = dict(zip(names, columns, strict=True))
    several = table.get("score") or [None] * len(table["sender"])
    nodes: dict[str, dict[str, Any]] = {}
    speakers = set(table["sender"])
    edges = []
    for sender, receiver, score in zip(table["sender"], table["receiver"], several, strict=True):
        start, ends = _node(sender, places), [_node(name, places) for name in _read_by(receiver, speakers, places)]
        nodes |= {node["id"]: node for node in (start, *ends)}
        via = receiver[-4] if receiver.endswith(("q_in", "k_in", "v_in")) else ""
        ids = {"from": start["id"], "to": [node["id"] for node in ends]}
        edges.append({**ids, "sender": sender, "receiver": receiver, "via": via, "score": score})
    text = {name: str(given.get(name) or "") for name in ("title", "about")}
    return {**text, "nodes": list(nodes.values()), "edges": edges}


def _read_by(receiver: str, speakers: set[str], places: Places) -> list[str]:
    """A receiver as the parts it belongs to: itself, or heads for a kv head, all of them unless some are senders."""
    found = NODE.match(receiver)
    if found is None or found["kind"] != "K":
        return [receiver]
    group = places.group(found[0])
    return [head for head in group if head in speakers] or group or [receiver]


def _node(name: str, places: Places) -> dict[str, Any]:
    if name in ("embed", "logits"):
        order = -1 if name == "embed" else 10**6
        return {"id": name, "label": name, "order": order, "slot": 0, "head": None}
    found = NODE.match(name)
    if found is None:
        raise ExplorerError(f"circuit.edges: {name!r} is no part of a circuit, such as embed, L0.H1, L1.mlp_in.")
    layer, head = int(found["layer"]), found["head"]
    label = f"L{layer} MLP" if head is None else f"L{layer}.{found['kind']}{head}"
    site = places.label(found[0]) if found["kind"] == "H" else None
    slot = 10**4 if head is None else int(head)
    return {"id": found[0], "label": label, "order": 2 * layer + (head is None), "slot": slot, "head": site}


def curve(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    only(given, CURVE, f"curves[{n}]")
    lines = [_line(one, f"curves[{n}].lines[{i}]") for i, one in enumerate(given["lines"])]
    text = {name: str(given.get(name) or "") for name in ("title", "about", "x_title", "y_title")}
    levels = pairs(given.get("levels") or (), f"curves[{n}].levels")
    return {**text, "log_x": bool(given.get("log_x")), "lines": lines, "levels": levels}


def _line(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    only(given, LINE, where)
    kind = given.get("kind") or "line"
    if kind not in LINES:
        raise ExplorerError(f"{where}.kind is one of {', '.join(LINES)}, got {kind!r}.")
    if given.get("x") is None or given.get("y") is None:
        raise ExplorerError(f"{where} has no x or no y.")
    values: dict[str, Any] = {
        name: None if given.get(name) is None else plain(list(given[name]), where) for name in LINE - {"name", "kind"}
    }
    if any(value is not None and len(value) != len(values["x"]) for value in values.values()):
        raise ExplorerError(f"{where}: x, y, low and high must be equally long.")
    return {"name": str(given.get("name", "")), "kind": kind, **{name: values[name] for name in sorted(values)}}
