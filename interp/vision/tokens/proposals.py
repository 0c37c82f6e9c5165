"""Where to try next: a Gaussian process through what was tried, and the expected improvement over the best of it.

Points are in the unit cube. With k(a, b) = exp(-|a - b|^2 / (2 l^2)) and values brought to mean 0 and variance 1,

    mean(p) = k(p, P) C y,    var(p) = 1 - k(p, P) C k(P, p),    C = (k(P, P) + noise I)^-1
    EI(p) = (mean - best) Phi(u) + sd phi(u),    u = (mean - best) / sd

Length l and noise are fixed (0.3 and 0.001, ours): with some tens of points there is little to learn them from.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LENGTH, NOISE = 0.3, 1e-3


def kernel(a: Float[Tensor, "one d"], b: Float[Tensor, "other d"]) -> Float[Tensor, "one other"]:
    """k of each pair."""
    return torch.exp(-torch.cdist(a, b).square() / (2 * LENGTH**2))


def posterior(
    tried: Float[Tensor, "tried d"], values: Float[Tensor, " tried"], points: Float[Tensor, "point d"]
) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Mean and standard deviation at `points`, of values as they come."""
    lower = torch.linalg.cholesky(kernel(tried, tried) + NOISE * torch.eye(len(tried), dtype=tried.dtype))
    middle, spread = values.mean(), values.std(correction=0).clamp(min=1e-9)
    across = kernel(points, tried)
    weights = torch.cholesky_solve(((values - middle) / spread)[:, None], lower)
    solved = torch.linalg.solve_triangular(lower, across.T, upper=False)
    sd = (1 - solved.square().sum(0)).clamp(min=1e-12).sqrt()
    return (across @ weights)[:, 0] * spread + middle, sd * spread


def expected_improvement(
    mean: Float[Tensor, " point"], sd: Float[Tensor, " point"], best: float
) -> Float[Tensor, " point"]:
    """How far above the best a point is expected to be, where it is."""
    normal, u = torch.distributions.Normal(0.0, 1.0), (mean - best) / sd
    return (mean - best) * normal.cdf(u) + sd * normal.log_prob(u).exp()
