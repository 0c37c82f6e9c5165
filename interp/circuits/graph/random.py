"""What a circuit is compared with: random ones of its size and layer profile, and the one of the largest changes."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import torch
from torch import Tensor

from interp.circuits.graph.carries import Carries
from interp.circuits.graph.changes import Written
from interp.circuits.graph.choose import chosen
from interp.circuits.graph.nodes import Graph


def like(graph: Graph, mask: Tensor, level: str, draw: torch.Generator) -> Tensor:
    """As many edges between each pair of layers and kinds of nodes as the mask has, drawn evenly; by nodes, as many of
    each kind in each layer."""
    if level == "node":
        return _nodes(graph, mask.any(1), draw)[:, None] & graph.exists
    found = torch.zeros_like(graph.exists)
    for senders, receivers in _cells(graph):
        count = int(mask[senders, receivers].sum())
        if count:
            some = torch.randperm(len(senders), generator=draw)[:count]
            found[senders[some], receivers[some]] = True
    return found


@lru_cache(maxsize=4)
def _cells(graph: Graph) -> list[tuple[Tensor, Tensor]]:
    """The edges between each pair of layers and kinds of nodes, as senders and receivers."""
    cells: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for u, v in graph.edges:
        sender, receiver = graph.senders[u], graph.receivers[v]
        cells[sender.layer, sender.component, receiver.layer, receiver.component].append((u, v))
    made = [torch.tensor(edges).T for edges in cells.values()]
    return [(pairs[0], pairs[1]) for pairs in made]


def _nodes(graph: Graph, kept: Tensor, draw: torch.Generator) -> Tensor:
    cells: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for u, sender in enumerate(graph.senders):
        cells[sender.layer, sender.component].append(u)
    found = torch.zeros_like(kept)
    for nodes in cells.values():
        count = int(kept[nodes].sum())
        found[[nodes[n] for n in torch.randperm(len(nodes), generator=draw)[:count].tolist()]] = True
    return found


def sizes(graph: Graph, more: Written, carries: Carries) -> Tensor:
    """[sender], the mean length of the change of what it writes, over rows and positions."""
    found = torch.zeros(len(graph.senders), dtype=torch.float64)
    found[0] = more.embed.norm(dim=-1).mean()
    for layer, z in more.z.items():
        for head in range(z.shape[2]):
            only = torch.zeros_like(z)
            only[:, :, head] = z[:, :, head]
            found[graph.heads_of(layer).start + head] = carries.project(layer, only).norm(dim=-1).mean()
    for layer, write in more.mlp.items():
        found[graph.mlp_of(layer)] = write.norm(dim=-1).mean()
    return found


def largest(graph: Graph, by: Tensor, mask: Tensor, level: str) -> Tensor:
    """The circuit of that size whose senders' writes change most; ties go to the earlier edge."""
    if level == "node":
        top = by.topk(int(mask.any(1).sum())).indices
        return torch.zeros_like(by, dtype=torch.bool).index_fill(0, top, True)[:, None] & graph.exists
    scores = by[torch.tensor([u for u, _ in graph.edges])]
    return graph.mask(chosen(graph, scores, int(mask.sum()), "top"))
