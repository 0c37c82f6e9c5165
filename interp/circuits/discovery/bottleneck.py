"""Information-bottleneck circuits: edges are drowned in noise as far as the answer allows.

Bian et al. 2025, IBCircuit (arXiv 2602.22581). Weights stay frozen; what a receiver reads of a sender's write w is

    l w + (1 - l) (mu + sigma e),   l = sigmoid(a) learned per edge,   e normal,

mu and sigma being the mean and deviation of that write over the prompts, position by position and feature by feature.
What an edge still tells is bounded by the divergence of that from pure noise, which per feature, as a mean over
prompts, is

    I(l) = ((1 - l)^2 + c l^2 - 1) / 2 - log(1 - l),

c being (n - 1) / n for features that differ among the n prompts and 0 for those that do not. The objective is
`((m - m_base) / scale)^2 + beta * mean over edges of I`; no corrupted prompt is needed, what is noise comes from the
prompts themselves. The paper gates nodes, a gate per prompt, and its loss is a divergence of logits or a difference of
cross-entropies; gates on edges, one for all prompts, and a loss of the metric are ours. Cost: per seed and step a soft
pass (`graph/soft.py`) and its way back. Limits: prompts of equal length and at least two of them, which differ in what
the circuit must tell apart; parts that cancel each other stay, since their noise does not cancel; edges that carry what
is the same in all prompts are closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.circuits.discovery.learning import circuit_of, matrix, over_seeds, refuse_counts, scale_of, wanted_size
from interp.circuits.found.circuit import Circuit
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Runner
from interp.circuits.graph.soft import Soft
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

START = 3.0
MOST = 1 - 1e-6


@hands_over
@torch.enable_grad()
def bottleneck(
    model: Model,
    *,
    base: Any,
    metric: Metric,
    size: int | float,
    beta: float = 1.0,
    steps: int = 200,
    rate: float = 0.1,
    seeds: int = 1,
    seed: int = 0,
    tower: str | None = None,
) -> Circuit:
    """The circuit of the `size` edges (a number, or a share below 1.0) that let the most through; `.scores` holds l,
    the mean over seeds, and `.meta["told"]` what is told along the circuit's edges, in nats per feature."""
    refuse_counts(steps=steps, seeds=seeds)
    pair = GraphPair(model, base, base, metric, tower)
    _refuse_rows(pair)
    runner, graph = Runner(pair, "zero"), pair.graph
    count, varied = wanted_size(graph, size), shares(runner)
    draw = _Draw()
    soft, goal = Soft(runner, draw), runner.base.to(model.device)
    draw.random = torch.Generator().manual_seed(seed)
    nothing = soft(torch.zeros(graph.exists.shape, device=model.device)).detach()
    scale = scale_of(runner.base, nothing.double().cpu())

    def learned(random: torch.Generator) -> Tensor:
        draw.random = random
        a = (START + 0.01 * torch.randn(len(graph.edges), generator=random)).to(model.device).requires_grad_()
        adam = torch.optim.Adam([a], rate)
        for _ in range(steps):
            let = torch.sigmoid(a)
            away = (soft(matrix(graph, let)).double() - goal) / scale
            total = away.square().mean() + beta * told(let.double(), varied.to(let.device)).mean()
            adam.zero_grad()
            total.backward()
            adam.step()
        return torch.sigmoid(a).detach()

    runs = over_seeds(graph, learned, seeds=seeds, seed=seed)
    meta = {
        **about(model.module, pair.base), "method": "bottleneck", "metric": metric_name(metric), "steps": steps,
        "beta": beta, "rate": rate, "seeds": seeds, "seed": seed, "passes": runner.count,
        "found_on": pair.base.digest(), "told": float(told(runs.mean(0), varied).sum()),
    }  # fmt: skip
    return circuit_of(graph, runs, count, meta)


def told(let: Tensor, varied: Tensor) -> Tensor:
    """I [edge] of how far edges are open and of c."""
    let = let.clamp(max=MOST)
    return ((1 - let).square() + varied * let.square() - 1) / 2 - torch.log1p(-let)


def shares(runner: Runner) -> Tensor:
    """c of each edge: the share of what its sender writes that differs among prompts, times (n - 1) / n."""
    full, graph = runner.full, runner.graph
    found = torch.zeros(len(graph.senders), dtype=torch.float64)
    found[0] = _varies(full.embed[None])
    for layer, z in full.z.items():
        writes = runner.carries.by_head(layer, z, runner.pair.model.dtype)
        found[graph.heads_of(layer)] = torch.tensor([_varies(one[None]) for one in writes], dtype=torch.float64)
    for layer, write in full.mlp.items():
        found[graph.mlp_of(layer)] = _varies(write[None])
    rows = runner.pair.base.batch
    return found[[u for u, _ in graph.edges]] * (rows - 1) / rows


def _varies(write: Tensor) -> float:
    return float((write.double().std(1) > 1e-9 * write.double().abs().amax().clamp(min=1e-30)).double().mean())


class _Draw:
    """Noise with the mean and deviation that writes have over prompts."""

    random: torch.Generator

    def __call__(self, start: int, writes: Tensor) -> Tensor:
        variance, mean = torch.var_mean(writes, dim=1, keepdim=True)
        differs = variance > 0  # the root has no slope at 0
        deviation = torch.where(differs, variance, 1.0).sqrt() * differs
        e = torch.randn(writes.shape, generator=self.random, dtype=torch.float32).to(writes)
        return mean + deviation * e


def _refuse_rows(pair: GraphPair) -> None:
    valid = pair.valid
    if pair.base.batch < 2:
        raise InputsError("an information bottleneck takes its noise from how prompts differ: give at least two rows.")
    if not bool((valid == valid[:1]).all()):
        raise InputsError(
            "an information bottleneck compares prompts position by position: give prompts of equal length, or use"
            " interp.circuits.edge_pruning."
        )


register(
    Method(
        "interp.circuits.bottleneck",
        number="which edges stay: those that let the most of their sender through",
        shown="edges",
        needs=("metric",),
        papers=("2602.22581",),
        passes=lambda t: 6 + 3 * 18,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        values=None,
        example=lambda t: bottleneck(
            t.model, base=t.base, metric=t.metric, size=0.2, steps=3, tower=t.tower.rstrip(".") or None
        ),
    )
)
