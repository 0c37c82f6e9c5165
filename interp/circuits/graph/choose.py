"""Which edges a circuit of a given size has: the largest scores anywhere, or the largest that can be reached."""

from __future__ import annotations

import heapq
from typing import Literal

import torch
from torch import Tensor

from interp.circuits.graph.nodes import Graph
from interp.kernels.errors import InterpError


def chosen(graph: Graph, scores: Tensor, count: int, by: Literal["top", "greedy"]) -> list[tuple[int, int]]:
    """`count` edges by their scores, in `graph.edges`' order; ties go to the earlier edge."""
    if by == "top":
        order = torch.sort(scores, descending=True, stable=True).indices
        return [graph.edges[n] for n in order[:count].tolist()]
    if by == "greedy":
        return _greedy(graph, scores, count)
    raise InterpError(f"edges are chosen by 'top' or 'greedy', got {by!r}.")


def _greedy(graph: Graph, scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Best first from the logits: an edge may be taken once what it ends in is part of the circuit."""
    into: dict[int, list[tuple[float, int]]] = {}
    for n, (_, v) in enumerate(graph.edges):
        into.setdefault(v, []).append((-float(scores[n]), n))
    heap: list[tuple[float, int]] = []
    reached: set[int] = set()

    def reach(receivers: list[int]) -> None:
        for v in receivers:
            if v not in reached:
                reached.add(v)
                for one in into.get(v, ()):
                    heapq.heappush(heap, one)

    reach([len(graph.receivers) - 1])
    found: list[tuple[int, int]] = []
    while heap and len(found) < count:
        edge = graph.edges[heapq.heappop(heap)[1]]
        found.append(edge)
        reach(graph.feeds[:, edge[0]].nonzero()[:, 0].tolist())
    return found
