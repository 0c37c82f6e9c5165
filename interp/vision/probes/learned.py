"""PACE's concepts with what the paper learns in addition: the map to few numbers, faithfulness, and stability.

PACE (arXiv 2406.12649) has E- and M-steps as in `concepts.py`, and learns as well a linear map A from states to `dim`
numbers, weights eta that say the model's answer from the mean mixture, and mixtures that stay under changed views:

    faithful   cross-entropy of the model's softmax against softmax(eta mean_j phi_j)
    stable     contrast: the mean mixture of a picture is nearest to that of its own changed view
    fit        -mean log density of patches

Of the paper's training the two terms and their places are known (its code nudges phi along both gradients, by steps of
Adam at 1e-4); how they are weighed in one loss is not, so this is ours: one sum, by gradient on A, the concepts (means
and Cholesky factors) and eta at once, with the E-steps unrolled and gamma held, as there. A's output is whitened over
the examples that are learned from, or density would reward a map to nothing. The contrast is InfoNCE on cosines at a
temperature of 0.1, and a changed view the same pixels with noise of a tenth of their spread: both ours.
Nothing of the examples left out is used but by the E-step, which reads their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HEAT, INNER = 0.1, 5


@dataclass(frozen=True, eq=False)
class Explained:
    """What was learned, and what it says of every example."""

    phi: Float[Tensor, "example patch concept"]
    gamma: Float[Tensor, "example concept"]
    means: Float[Tensor, "concept dim"]
    bound: float
    said: Float[Tensor, "example answer"]
    """softmax(eta mean phi)."""
    changed: Float[Tensor, "example concept"]
    """The mean mixture of each changed view."""


class Concept(torch.nn.Module):
    """A, the concepts and eta."""

    def __init__(self, first: Float[Tensor, "d dim"], means: Tensor, lower: Tensor, answers: int) -> None:
        super().__init__()
        self.map, self.means, self.lower = (torch.nn.Parameter(one.clone()) for one in (first, means, lower))
        self.eta = torch.nn.Parameter(torch.zeros(len(means), answers, dtype=means.dtype))

    def small(self, tokens: Float[Tensor, "example patch d"], like: Float[Tensor, "other patch d"]) -> Tensor:
        """A's output [example, patch, dim], as it would be whitened for the tokens of `like`."""
        e, flat = tokens @ self.map, (like @ self.map).flatten(0, 1)
        middle = flat.mean(0)
        eye = torch.eye(e.shape[-1], dtype=e.dtype)
        lower = torch.linalg.cholesky(torch.cov((flat - middle).T).reshape(eye.shape) + 1e-4 * eye)
        flat = torch.linalg.solve_triangular(lower, (e - middle).flatten(0, 1).T, upper=False).T
        return flat.view(e.shape)

    def logs(self, e: Tensor) -> Float[Tensor, "example patch concept"]:
        """Log density of each concept."""
        lower = self.lower.tril(-1) + torch.diag_embed(self.lower.diagonal(dim1=1, dim2=2).abs() + 1e-2)
        apart = e.flatten(0, 1)[:, None] - self.means
        solved = torch.linalg.solve_triangular(lower, apart.permute(1, 2, 0), upper=False)
        logs = -0.5 * solved.square().sum(1) - lower.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        constant = 0.5 * e.shape[-1] * torch.log(torch.tensor(2 * torch.pi, dtype=e.dtype))
        return (logs - constant).T.reshape(*e.shape[:2], -1)

    def mixtures(self, e: Tensor, w: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """phi, gamma and log densities after the E-steps, gradients through the last phi alone."""
        logs = self.logs(e)
        gamma = torch.full((len(e), logs.shape[-1]), alpha + e.shape[1] / logs.shape[-1], dtype=e.dtype)
        with torch.no_grad():
            for _ in range(INNER):
                phi = (torch.digamma(gamma)[:, None] + logs).softmax(-1)
                gamma = alpha + (w[..., None] * phi).sum(1)
        return (torch.digamma(gamma)[:, None] + logs).softmax(-1), gamma, logs

    def said(self, phi: Tensor) -> Float[Tensor, "example answer"]:
        """Log-probabilities of answers from mean mixtures."""
        return (phi.mean(1) @ self.eta).log_softmax(-1)


def stable(one: Float[Tensor, "example concept"], other: Float[Tensor, "example concept"]) -> Tensor:
    """InfoNCE of mixtures and those of the same pictures, changed."""
    a, b = (torch.nn.functional.normalize(value, dim=-1) for value in (one, other))
    return torch.nn.functional.cross_entropy(a @ b.T / HEAT, torch.arange(len(a)))


def nearest(one: Float[Tensor, "example concept"], other: Float[Tensor, "example concept"]) -> float:
    """How often a mixture's nearest changed one, by cosine, is that of the same picture."""
    a, b = (torch.nn.functional.normalize(value, dim=-1) for value in (one, other))
    return float(((a @ b.T).argmax(-1) == torch.arange(len(a))).double().mean())


def learned(
    tokens: Float[Tensor, "example patch d"], views: Float[Tensor, "example patch d"], w: Tensor,
    answers: Float[Tensor, "example answer"], fit: Bool[Tensor, " example"], start: tuple[Tensor, Tensor, Tensor], *,
    alpha: float, steps: int, rate: float,
) -> Explained:  # fmt: skip
    """Learn from the examples of `fit`, starting with a map, means and covariances; `answers` are probabilities."""
    first, means, covariances = start
    model = Concept(first, means, torch.linalg.cholesky(covariances), answers.shape[1])
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            e, other = (model.small(one[fit], tokens[fit]) for one in (tokens, views))
            phi, gamma, logs = model.mixtures(e, w[fit], alpha)
            changed, _, _ = model.mixtures(other, w[fit], alpha)
            faithful = -(answers[fit] * model.said(phi)).sum(-1).mean()
            loss = -density(gamma, logs) / e.shape[-1] + faithful + stable(phi.mean(1), changed.mean(1))
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        e, other = (model.small(one, tokens[fit]) for one in (tokens, views))
        phi, gamma, logs = model.mixtures(e, w, alpha)
        changed, _, _ = model.mixtures(other, w, alpha)
        bound = float(density(gamma, logs))
        return Explained(phi, gamma, model.means.detach(), bound, model.said(phi).exp(), changed.mean(1))


def density(gamma: Float[Tensor, "example concept"], logs: Float[Tensor, "example patch concept"]) -> Tensor:
    """Mean log density of patches under each example's mixture."""
    theta = gamma / gamma.sum(-1, keepdim=True)
    return (theta.log()[:, None] + logs).logsumexp(-1).mean()
