"""Tests of a circuit against circuits drawn by chance, and what many tests at once come to.

After Shi et al. 2024 (arXiv 2410.13032), with permutation tests of our own wording. Each p-value is
`(1 + draws that do as well) / (1 + draws)`, so that it is never 0 and is valid for any number of draws:

    sufficient  circuits of the same size and layer profile whose |1 - f| is as small
    necessary   random circuits of that profile outside of it, without which the model loses as much
    minimal     for each edge tried, single edges taken from outside that move f as much when they are put in

Edges are many, so theirs are corrected by Holm among themselves and the share that passes is given; the first two are
corrected together with it. Cost: a pass per draw and test. Limits: 100 draws cannot say less than 1/101; the null
circuits are random, so passing says "not by chance", not "the best".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.circuits.found.circuit import Circuit
from interp.circuits.found.drawing import held
from interp.circuits.graph.random import like
from interp.circuits.real.ground import Ground
from interp.circuits.real.verdict import Line

LEVEL = 0.05


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values: the k-th smallest of n times n - k, never below a smaller one's, at most 1."""
    order = sorted(range(len(p)), key=lambda n: p[n])
    found, most = [0.0] * len(p), 0.0
    for k, n in enumerate(order):
        most = max(most, min(1.0, p[n] * (len(p) - k)))
        found[n] = most
    return found


def p_value(found: float, draws: Tensor) -> float:
    """How often a draw is at least as large, counting what was found as one of them."""
    return (1 + int((draws >= found).sum())) / (1 + len(draws))


def chance(ground: Ground, circuit: Circuit, *, draws: int, parts: int, seed: int) -> list[Line]:
    """Three lines."""
    if not draws:
        return [Line("chance", "random circuits", why="random=0: not asked")]
    mask, random = circuit.mask, torch.Generator().manual_seed(seed)
    some = [like(ground.graph, mask, "edge", random) for _ in range(draws)]
    f = ground.of(mask)
    near = torch.tensor([-abs(1 - ground.of(one)) for one in some])
    lost = 1 - ground.of(ground.graph.exists & ~mask)
    losses = torch.tensor([1 - ground.of(ground.graph.exists & ~(one & ~mask)) for one in some])
    raw = [p_value(-abs(1 - f), near), p_value(lost, losses)]
    passed, tried, least = _edges(ground, mask, f, parts, random)
    every = holm([*raw, least])
    share = passed / tried if tried else None
    return [
        _line("sufficient: |1 - f|", abs(1 - f), every[0], draws, "random circuits of its size and layer profile"),
        _line("necessary: f lost without it", lost, every[1], draws, "random circuits of that profile outside it"),
        Line("chance", "minimal: edges beyond chance", share, None, None, every[2], _most(share), tried,
             "single edges from outside, Holm over edges"),
    ]  # fmt: skip


def _line(of: str, value: float, p: float, n: int, why: str) -> Line:
    return Line("chance", of, value, None, None, p, p <= LEVEL, n, why)


def _most(share: float | None) -> bool | None:
    return None if share is None else share > 0.5


def _edges(ground: Ground, mask: Tensor, f: float, parts: int, random: torch.Generator) -> tuple[int, int, float]:
    """How many edges move f more than edges from outside, how many were tried, and the smallest p, corrected."""
    inside, outside = list(held(ground.graph, mask)), list(held(ground.graph, ground.graph.exists & ~mask))
    if not inside or not outside or not parts:
        return 0, 0, 1.0
    tried = [inside[n] for n in torch.randperm(len(inside), generator=random)[:parts].tolist()]
    others = [outside[n] for n in torch.randperm(len(outside), generator=random)[: 20 * parts].tolist()]
    moved = torch.tensor([abs(ground.of(mask | ground.graph.mask([one])) - f) for one in others])
    p = [p_value(abs(f - ground.of(mask & ~ground.graph.mask([one]))), moved) for one in tried]
    corrected = holm(p)
    return sum(one <= LEVEL for one in corrected), len(tried), min(corrected)
