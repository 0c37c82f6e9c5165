"""PACE's mixture of Gaussian concepts, fitted by E- and M-steps from one start (formulas in `concepts.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Concepts fitted from one start."""

    phi: Tensor
    gamma: Tensor
    means: Tensor
    covariances: Tensor
    bound: float

    @staticmethod
    def empty(k: int, dim: int) -> tuple[Tensor, Tensor]:
        """Means at 0 and factors of 1."""
        return torch.zeros(k, dim).double(), torch.eye(dim).double().expand(k, -1, -1)

    def of(self, e: Tensor, w: Tensor, alpha: float) -> Float[Tensor, "example patch concept"]:
        """phi of other patches under these concepts."""
        logs = log_normal(e, self.means, self.covariances)
        gamma = torch.full((len(e), len(self.means)), alpha + e.shape[1] / len(self.means), dtype=e.dtype)
        for _ in range(10):
            phi = (torch.digamma(gamma)[:, None] + logs).softmax(-1)
            gamma = alpha + (w[..., None] * phi).sum(1)
        return phi

    @classmethod
    def fitted(
        cls, e: Float[Tensor, "example patch d"], w: Tensor, k: int, alpha: float, steps: int, seed: int
    ) -> Mixture:
        """E- and M-steps in turn."""
        flat, width = e.reshape(-1, e.shape[-1]), e.shape[-1]
        means = _spread(flat, k, torch.Generator().manual_seed(seed))
        whole = torch.cov(flat.T).reshape(width, width) + 1e-3 * torch.eye(width, dtype=e.dtype)
        covariances = (whole / k ** (2 / width)).expand(k, -1, -1).clone()
        gamma = torch.full((len(e), k), alpha + e.shape[1] / k, dtype=e.dtype)
        for _ in range(steps):
            logs = log_normal(e, means, covariances)
            for _ in range(10):
                phi = (torch.digamma(gamma)[:, None] + logs).softmax(-1)
                gamma = alpha + (w[..., None] * phi).sum(1)
            share = (w[..., None] * phi).reshape(-1, k)
            mass = share.sum(0)
            means = torch.where(mass[:, None] > 1e-6, share.T @ flat / mass.clamp(min=1e-6)[:, None], means)
            apart = flat[:, None] - means
            spread = torch.einsum("nk,nki,nkj->kij", share, apart, apart)
            covariances = (spread + whole) / (mass + 1)[:, None, None] + 1e-3 * torch.eye(width, dtype=e.dtype)
        theta = gamma / gamma.sum(-1, keepdim=True)
        bound = float((theta.log()[:, None] + log_normal(e, means, covariances)).logsumexp(-1).mean())
        return cls(phi, gamma, means, covariances, bound)


def log_normal(e: Tensor, means: Tensor, covariances: Tensor) -> Float[Tensor, "example patch concept"]:
    """Log density of each Gaussian."""
    lower = torch.linalg.cholesky(covariances)
    apart = e.reshape(-1, 1, e.shape[-1]) - means
    solved = torch.linalg.solve_triangular(lower, apart.permute(1, 2, 0), upper=False)
    logs = -0.5 * solved.square().sum(1) - lower.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    constant = 0.5 * e.shape[-1] * torch.log(torch.tensor(2 * torch.pi, dtype=e.dtype))
    return (logs - constant).T.reshape(*e.shape[:2], -1)


def _spread(flat: Tensor, k: int, random: torch.Generator) -> Tensor:
    """k of the points, each drawn with the square of its distance to those before (k-means++)."""
    found = [flat[int(torch.randint(len(flat), (1,), generator=random))]]
    for _ in range(k - 1):
        near = torch.stack([(flat - one).square().sum(-1) for one in found]).amin(0)
        weights = near if float(near.sum()) > 0 else torch.ones_like(near)
        found.append(flat[int(torch.multinomial(weights, 1, generator=random))])
    return torch.stack(found)
