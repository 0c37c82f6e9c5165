"""Optimal ablation: what is outside the circuit gives constants that are learned to hurt the least.

Li and Janson 2024 (arXiv 2409.09951): resampled, mean and zero values all put something in the place of a part that
says more than "nothing"; a constant per part, chosen to keep the loss lowest, is what is left when only the information
is gone. Every closed edge reads its sender's constant [d], one for all prompts and positions, trained by Adam from the
mean of that sender's writes to minimise the mean over rows of `(m(circuit) - m(model))^2`. Weights stay frozen. Cost:
per step a soft pass (`graph/soft.py`) and its way back. Limits: with few prompts a constant can hold the answer
itself; fewer than ten are said to be few.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Runner
from interp.circuits.graph.soft import Soft


class Constants:
    """Learned constants of one pair's base."""

    def __init__(self, pair: GraphPair, *, steps: int, rate: float) -> None:
        self.runner = Runner(pair, "zero")
        self.steps, self.rate = steps, rate
        self.goal = self.runner.base.to(pair.model.device)

    def errors(self, mask: Tensor) -> tuple[float, float]:
        """The root of the mean squared error of the metric, with mean constants and with learned ones."""
        values: dict[int, Tensor] = {}

        def instead(start: int, writes: Tensor) -> Tensor:
            if start not in values:
                values[start] = self._mean(writes.detach())
            return values[start].expand(writes.shape)

        soft, gates = Soft(self.runner, instead), mask.to(self.runner.full.embed)
        first = float(self._loss(soft(gates)).detach())
        constants = list(values.values())
        adam = torch.optim.Adam([one.requires_grad_() for one in constants], self.rate * self._size(constants))
        best = first
        for _ in range(self.steps):
            loss = self._loss(soft(gates))
            best = min(best, float(loss.detach()))
            adam.zero_grad()
            loss.backward()
            adam.step()
        best = min(best, float(self._loss(soft(gates)).detach()))
        return first**0.5, best**0.5

    def _loss(self, found: Tensor) -> Tensor:
        return (found.double() - self.goal).square().mean()

    def _mean(self, writes: Tensor) -> Tensor:
        real = self.runner.pair.valid.to(writes.device)[None, :, :, None]
        return (writes * real).sum((1, 2), keepdim=True) / real.sum()

    @staticmethod
    def _size(constants: list[Tensor]) -> float:
        """A rate is in parts of how large constants are."""
        return float(
            torch.cat([one.detach().flatten().cpu() for one in constants]).square().mean().sqrt().clamp(min=1e-6)
        )
