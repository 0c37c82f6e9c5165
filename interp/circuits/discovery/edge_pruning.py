"""Edge pruning: a mask over edges is learned so that a circuit of a given size does what the model does.

Bhaskar et al. 2024 (arXiv 2406.16778). Weights stay frozen; each edge has a gate of Louizos et al. 2018 (1712.01312),
drawn anew at every step, and what a receiver reads is mixed from this run's write and the source's,

    in_v = sum over u of g_uv write_u + (1 - g_uv) write_u(source),
    g = clip(1.2 sigmoid((log x - log(1 - x) + a) / T) - 0.1, 0, 1),  x uniform,  T = 2/3

The open share is held to a target by two multipliers that go up the gradient while the gates go down it,

    loss + l1 (s - t) + l2 (s - t)^2,  s = mean over edges of P(g > 0) = sigmoid(a - T log(0.1 / 1.1)),

where t goes from 1 to `size` over the first `warm` of the steps. The loss is that of the metric,
`((m - m_base) / scale)^2` per row, scale being what closing every edge costs; with `metric=interp.metrics.KL.to(...)`
it is the paper's divergence, squared. At the end the `size` edges of the largest a are the circuit, pruned. Cost: per
seed and step a soft pass (`graph/soft.py`) and its way back. Ours and not the paper's: gates on edges alone, none on
what a node writes; every step sees all rows. Limits: of ways that do equally well one is chosen, by chance; an edge
that acts through a saturated softmax is kept by rare and large gradients, and may be lost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.circuits.discovery.learning import circuit_of, matrix, over_seeds, refuse_counts, scale_of, wanted_size
from interp.circuits.found.circuit import Circuit
from interp.circuits.graph.changes import GraphPair, refuse_filled
from interp.circuits.graph.running import Runner
from interp.circuits.graph.soft import Soft
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

T, LOW, HIGH = 2 / 3, -0.1, 1.1
FAR = 1e-6
"""Uniform numbers stay this far from 0 and 1."""


@hands_over
@torch.enable_grad()
def edge_pruning(
    model: Model,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    size: int | float,
    steps: int = 200,
    warm: float = 0.6,
    rate: float = 0.2,
    seeds: int = 1,
    seed: int = 0,
    tower: str | None = None,
) -> Circuit:
    """The circuit of `size` edges (a number, or a share below 1.0) that keeps the base's metric; `.scores` holds how
    likely each gate is open, the mean over seeds."""
    refuse_counts(steps=steps, seeds=seeds)
    pair = GraphPair(model, base, source, metric, tower)
    refuse_filled(pair, "edge pruning")
    runner = Runner(pair)
    count = wanted_size(pair.graph, size)
    goal = runner.base.to(model.device)
    scale = scale_of(runner.base, runner(torch.zeros_like(pair.graph.exists)))
    soft = Soft(runner)

    def loss(gates: Tensor) -> Tensor:
        return ((soft(matrix(pair.graph, gates)).double() - goal) / scale).square().mean()

    plan = _Plan(loss, len(pair.graph.edges), count / len(pair.graph.edges), steps, warm, rate, str(model.device))
    runs = over_seeds(pair.graph, plan.learned, seeds=seeds, seed=seed)
    meta = {
        **about(model.module, pair.base), "method": "edge-pruning", "metric": metric_name(metric), "steps": steps,
        "rate": rate, "seeds": seeds, "seed": seed, "passes": runner.count, "found_on": pair.base.digest(),
    }  # fmt: skip
    return circuit_of(pair.graph, runs, count, meta)


class _Plan:
    """One training of gates."""

    def __init__(self, loss: Any, edges: int, share: float, steps: int, warm: float, rate: float, device: str) -> None:
        self.loss, self.edges, self.share, self.steps = loss, edges, share, steps
        self.warm, self.rate, self.device = max(1, round(warm * steps)), rate, device

    def learned(self, random: torch.Generator) -> Tensor:
        """[edge], how likely each gate is open after the last step."""
        a = (3.0 + 0.01 * torch.randn(self.edges, generator=random)).to(self.device).requires_grad_()
        held = torch.zeros(2, device=self.device, requires_grad=True)
        down, up = torch.optim.Adam([a], self.rate), torch.optim.Adam([held], self.rate, maximize=True)
        for step in range(self.steps):
            target = 1 + (self.share - 1) * min(1.0, (step + 1) / self.warm)
            over = opened(a).mean() - target
            total = self.loss(drawn(a, random)) + held[0] * over + held[1] * over.square()
            down.zero_grad()
            up.zero_grad()
            total.backward()
            down.step()
            up.step()
        return opened(a).detach()


def drawn(a: Tensor, random: torch.Generator) -> Tensor:
    """Gates between 0 and 1, each of them exactly 0 or 1 with some chance."""
    x = torch.rand(a.shape, generator=random).clamp(FAR, 1 - FAR).to(a)
    return (torch.sigmoid((x.log() - (1 - x).log() + a) / T) * (HIGH - LOW) + LOW).clamp(0, 1)


def opened(a: Tensor) -> Tensor:
    """The chance that a gate is above 0."""
    return torch.sigmoid(a - T * math.log(-LOW / HIGH))


register(
    Method(
        "interp.circuits.edge_pruning",
        number="which edges stay: those whose learned gates are open furthest",
        shown="edges",
        needs=("metric", "source"),
        papers=("2406.16778", "1712.01312"),
        passes=lambda t: 6 + 3 * 18,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        values=None,
        example=lambda t: edge_pruning(
            t.model, base=t.base, source=t.source, metric=t.metric, size=0.2, steps=3,
            tower=t.tower.rstrip(".") or None,
        ),
    )
)  # fmt: skip
