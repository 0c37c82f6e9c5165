"""Kinds of gates that can be learned: how one is drawn in training, what it costs, and what it is afterwards.

A bank holds n gates as free tensors. `draw` gives gates through which a loss has a gradient, `cost` what the penalty
multiplies, `openness` in 0..1 how surely each gate is open, `value` what the gate is once training is over.

hard-concrete (Louizos et al. 2018, arXiv 1712.01312; heads: Voita et al. 2019, arXiv 1905.09418):
    s = sigmoid((log u - log(1 - u) + log a) / T),   g = clip(s (zeta - gamma) + gamma, 0, 1),   u uniform
    P(g > 0) = sigmoid(log a - T log(-gamma / zeta)), whose mean is the cost; value = clip(sigmoid(log a) (zeta - gamma)
    + gamma, 0, 1), without the temperature, as in both papers.
vib (variational bottleneck, Dai et al. 2018, arXiv 1802.10399; in transformers: VTrans, arXiv 2406.05276):
    g = mu + sigma e,   cost = mean of 0.5 log(1 + mu^2 / sigma^2),   open, and mu, where sigma^2 < mu^2
binary (masks over frozen weights, Mallya et al. 2018, arXiv 1801.06519, by the straight-through estimator):
    g = 1[s > 0] going forward, sigmoid(s) going backward; the cost is the mean of g, with the same gradient
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["hard-concrete", "vib", "binary"]
T, GAMMA, ZETA = 0.33, -0.1, 1.1
EDGE = 1e-6
"""Uniform numbers stay this far from 0 and 1."""
STEEPNESS = 10.0
"""Of openness around the threshold of "vib", as in the code of the authors of VTrans."""


class Bank(ABC):
    """n gates, in float32 on the CPU; training changes `parameters`."""

    parameters: list[Tensor]

    def __init__(self, n: int, random: torch.Generator) -> None:
        self.parameters = self.start(n, random)
        for one in self.parameters:
            one.requires_grad_()

    @abstractmethod
    def start(self, n: int, random: torch.Generator) -> list[Tensor]:
        """Parameters of gates that are open, each a little different."""

    @abstractmethod
    def draw(self, random: torch.Generator) -> Tensor:
        """Gates [n] for one training step."""

    @abstractmethod
    def cost(self) -> Tensor:
        """What open gates cost, as a mean over gates."""

    @abstractmethod
    def openness(self) -> Tensor:
        """How surely each gate is open, 0..1."""

    @abstractmethod
    def value(self) -> Tensor:
        """Each gate after training."""


def _around(centre: float, n: int, random: torch.Generator) -> Tensor:
    return centre + 0.01 * torch.randn(n, generator=random)


class HardConcrete(Bank):
    """Gates that are 0 or 1 with probability above 0, and in between otherwise."""

    def start(self, n: int, random: torch.Generator) -> list[Tensor]:
        return [_around(2.0, n, random)]

    def draw(self, random: torch.Generator) -> Tensor:
        (log_a,) = self.parameters
        u = torch.rand(log_a.shape, generator=random).clamp(EDGE, 1 - EDGE)
        s = torch.sigmoid((u.log() - (1 - u).log() + log_a) / T)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def cost(self) -> Tensor:
        return self.openness().mean()

    def openness(self) -> Tensor:
        return torch.sigmoid(self.parameters[0] - T * math.log(-GAMMA / ZETA))

    def value(self) -> Tensor:
        return (torch.sigmoid(self.parameters[0]) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Bottleneck(Bank):
    """Gates with noise of their own; where the noise outgrows the gate nothing passes."""

    def start(self, n: int, random: torch.Generator) -> list[Tensor]:
        return [_around(1.0, n, random), _around(-9.0, n, random)]

    def draw(self, random: torch.Generator) -> Tensor:
        mu, log_variance = self.parameters
        return mu + (log_variance / 2).exp() * torch.randn(mu.shape, generator=random)

    def cost(self) -> Tensor:
        mu, log_variance = self.parameters
        return (0.5 * torch.log1p(mu.square() / log_variance.exp())).mean()

    def openness(self) -> Tensor:
        mu, log_variance = self.parameters
        return torch.sigmoid(-STEEPNESS * (log_variance - mu.square().clamp(min=1e-30).log()))

    def value(self) -> Tensor:
        return self.parameters[0] * (self.openness() > 0.5)


class Binary(Bank):
    """Gates that are 0 or 1 throughout."""

    def start(self, n: int, random: torch.Generator) -> list[Tensor]:
        return [_around(1.0, n, random)]

    def draw(self, random: torch.Generator) -> Tensor:
        (s,) = self.parameters
        soft = torch.sigmoid(s)
        return (s > 0).to(s.dtype) + soft - soft.detach()

    def cost(self) -> Tensor:
        return self.draw(torch.Generator()).mean()

    def openness(self) -> Tensor:
        return torch.sigmoid(self.parameters[0])

    def value(self) -> Tensor:
        return (self.parameters[0] > 0).to(torch.float32)


BANKS: dict[str, type[Bank]] = {"hard-concrete": HardConcrete, "vib": Bottleneck, "binary": Binary}
