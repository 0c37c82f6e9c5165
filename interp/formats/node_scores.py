"""Scores of heads and MLPs in CircuitKIT's `*_scores.json`, read and written: `{"node_scores": {"A0.1": 0.3, "MLP 3":
0.1}, "task", "model", "algorithm", "level": "node", "timestamp", "version"}`.

Scores there are magnitudes and never negative, so signs do not come back. Neuron scores ("L3.42") are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.hooks.head_names import head_name, head_place
from interp.reading import Entry, whole_file

HEAD, MLP = re.compile(r"A(\d+)\.(\d+)"), re.compile(r"MLP (\d+)")


def node_scores(path: str | Path) -> dict[str, float]:
    """By site, "L0.H1" and "L3.mlp_write", each node's score."""
    entry = whole_file(path)
    entry.need("node_scores")
    if entry.value.get("level", "node") != "node":
        raise entry.fail(f"expected scores of nodes, got level {entry.value['level']!r}")
    scores: Any = entry.value["node_scores"]
    if not isinstance(scores, dict) or not scores:
        raise entry.fail("expected 'node_scores' to hold at least one score by name")
    return {_site(entry, name): _score(entry, name, value) for name, value in scores.items()}


def write_node_scores(
    path: str | Path, scores: Mapping[str, float], *, task: str = "", model: str = "", algorithm: str = "eap-ig"
) -> Path:
    """Write magnitudes of scores by site; `algorithm` is one that CircuitKIT knows."""
    named = {_theirs(site): abs(float(value)) for site, value in scores.items()}
    said = {"task": task, "model": model, "algorithm": algorithm, "level": "node", "node_scores": named,
            "timestamp": "", "version": "1.0", "discovery_cfg": {}}  # fmt: skip
    file = Path(path)
    scratch = file.with_name(file.name + ".part")
    scratch.write_text(json.dumps(said, indent=2), encoding="utf-8")
    scratch.rename(file)
    return file


def _site(entry: Entry, name: str) -> str:
    head, mlp = HEAD.fullmatch(name), MLP.fullmatch(name)
    if head:
        return head_name(None, int(head[1]), int(head[2]))
    if mlp:
        return f"L{int(mlp[1])}.mlp_write"
    raise entry.fail(f"expected nodes 'A0.1' or 'MLP 3', got {name!r}")


def _score(entry: Entry, name: str, value: Any) -> float:
    if type(value) not in (int, float) or value < 0:
        raise entry.fail(f"expected a score of 0 or more for {name!r}, got {value!r:.80}")
    return float(value)


def _theirs(site: str) -> str:
    layer, _, part = site.removesuffix(".z").partition(".")
    if part == "mlp_write":
        return f"MLP {int(layer[1:])}"
    _, number, head = head_place(site.removesuffix(".z"))
    return f"A{number}.{head}"
