"""What methods that learn how far edges are open have in common: their checks, and a circuit from what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.circuits.found.circuit import Circuit
from interp.circuits.graph.choose import chosen
from interp.circuits.graph.nodes import Graph
from interp.hooks.errors import InputsError


def wanted_size(graph: Graph, size: int | float) -> int:
    """How many edges: a whole number of them, or a share of all."""
    count = size if isinstance(size, int) else int(size * len(graph.edges))
    if isinstance(size, bool) or not 0 < count <= len(graph.edges) or (not isinstance(size, int) and not size < 1):
        raise InputsError(
            f"size is a number of edges, 1 to {len(graph.edges)} here, or a share of them below 1.0; got {size!r}."
        )
    return int(count)


def refuse_counts(**counts: int) -> None:
    """Raise for numbers of steps, seeds or draws below 1."""
    wrong = {name: count for name, count in counts.items() if count < 1}
    if wrong:
        raise InputsError(f"{', '.join(counts)} are at least 1; got {wrong}.")


def scale_of(whole: Tensor, nothing: Tensor) -> float:
    """What losses are counted in: how far the metric is from the model's when every edge is closed."""
    found = float((whole - nothing).square().mean().sqrt())
    if not found > 1e-6 * max(1.0, float(whole.abs().max())):
        raise InputsError(
            "with every edge closed the metric is the same as that of the model, so no edge can be learned: give"
            " prompts on which the two differ."
        )
    return found


def over_seeds(graph: Graph, one: Callable[[torch.Generator], Tensor], *, seeds: int, seed: int) -> Tensor:
    """[seed, edge], how far open each edge is after each run."""
    return torch.stack([one(torch.Generator().manual_seed(seed + n)).double().cpu() for n in range(seeds)])


def matrix(graph: Graph, values: Tensor) -> Tensor:
    """[sender, receiver] with these values of edges, differentiable, and 0 where there is no edge."""
    senders, receivers = (torch.tensor(ends, device=values.device) for ends in zip(*graph.edges, strict=True))
    found = torch.zeros(graph.exists.shape, dtype=values.dtype, device=values.device)
    return found.index_put((senders, receivers), values)


def circuit_of(graph: Graph, runs: Tensor, count: int, meta: Mapping[str, Any]) -> Circuit:
    """The edges that are open furthest, on average over runs; `meta["stability"]` says how alike runs are."""
    mean = runs.mean(0)
    masks = [graph.mask(chosen(graph, run, count, "top")) for run in runs]
    pairs = [(a & b).sum() / (a | b).sum() for n, a in enumerate(masks) for b in masks[:n]]
    stability = float(torch.stack(pairs).mean()) if pairs else float("nan")
    scores = torch.where(graph.exists, matrix(graph, mean), torch.nan)
    mask = graph.pruned(graph.mask(chosen(graph, mean, count, "top")))
    return Circuit(graph, mask, "edge", {**meta, "asked": count, "stability": stability}, scores)
