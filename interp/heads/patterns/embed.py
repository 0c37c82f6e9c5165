"""Patterns as points: a small autoencoder trained in seconds, and clusters of what it says.

The autoencoder has one hidden layer on either side, `x -> W2 gelu(W1 x) = code -> W4 gelu(W3 code) = x'`, and is
trained on all patterns at once by Adam on the squared error. Weights are drawn and steps are taken from a seed, so that
the same data give the same codes on one machine. How much of the variance it explains is given together with what as
many principal components explain. Clusters are k-means from the points that are farthest apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

HIDDEN = 32
RATE = 0.01
ROUNDS = 100


@dataclass(frozen=True, eq=False)
class Embedding:
    """Codes of patterns [pattern, dims], and the share of the variance they explain."""

    codes: Tensor
    explained: float
    principal: float
    """The share that the same number of principal components explain."""


def embed(features: Tensor, dims: int, *, steps: int, seed: int) -> Embedding:
    """Codes of the rows of features [pattern, feature]."""
    x = (features - features.mean(0)).float()
    size = x.square().mean().sqrt().clamp(min=1e-12)
    x = x / size
    random = torch.Generator().manual_seed(seed)
    widths = (x.shape[1], HIDDEN, dims, HIDDEN, x.shape[1])
    layers = [_layer(a, b, random) for a, b in pairwise(widths)]
    with torch.enable_grad():
        adam = torch.optim.Adam([p for layer in layers for p in layer], lr=RATE)
        for _ in range(steps):
            loss = (_decoded(layers, _encoded(layers, x)) - x).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        codes = _encoded(layers, x)
        lost = float((_decoded(layers, codes) - x).square().sum() / x.square().sum().clamp(min=1e-12))
    sizes = torch.linalg.svdvals(x.double()).square()
    return Embedding(codes.double(), 1 - lost, float(sizes[:dims].sum() / sizes.sum().clamp(min=1e-300)))


def _layer(a: int, b: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(a, b, generator=random) / a**0.5
    return weight.requires_grad_(), torch.zeros(b).requires_grad_()


def _encoded(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    (a, b), (c, d) = layers[:2]
    return torch.nn.functional.gelu(x @ a + b) @ c + d


def _decoded(layers: list[tuple[Tensor, Tensor]], code: Tensor) -> Tensor:
    (a, b), (c, d) = layers[2:]
    return torch.nn.functional.gelu(code @ a + b) @ c + d


def clusters(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The cluster of each point [point], numbered in the order they first occur, and the centres."""
    centres = _far_apart(points, count)
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(ROUNDS):
        centres = torch.stack([points[labels == c].mean(0) for c in range(len(centres)) if bool((labels == c).any())])
        new = torch.cdist(points, centres).argmin(1)
        if torch.equal(new, labels):
            break
        labels = new
    order = list(dict.fromkeys(labels.tolist()))
    return torch.tensor([order.index(one) for one in labels.tolist()]), centres[order]


def _far_apart(points: Tensor, count: int) -> Tensor:
    """The point nearest to the middle, then each time the one farthest from those chosen; no point twice."""
    chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < min(count, len(points)):
        away = torch.cdist(points, points[chosen]).amin(1)
        if float(away.max()) == 0:
            break
        chosen.append(int(away.argmax()))
    return points[chosen]


def plane(points: Tensor) -> Tensor:
    """The first two principal components [point, 2], each with its largest entry positive."""
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=True)
    found = torch.nn.functional.pad(centred @ directions[:2].T, (0, max(0, 2 - points.shape[1])))
    sign = found.gather(0, found.abs().argmax(0, keepdim=True)).sign()
    return found * sign.where(sign != 0, 1.0)
