"""Regions of a map: pixels above a threshold that touch, their boxes, and how well a place fits a box that is known.

Pixels touch where they share a side. `pointing` is the pointing game (a hit where the largest value is in the box),
`iou` the intersection of two boxes over their union. Boxes are (left, top, right, bottom), ends excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks.errors import InputsError

Side = float | int
Box = tuple[Side, Side, Side, Side]


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels that touch."""

    inside: Bool[Tensor, "height width"]
    weight: float
    """The map summed over it."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around it."""
        return around(self.inside)


def around(inside: Bool[Tensor, "height width"]) -> tuple[int, int, int, int]:
    """The smallest box around pixels, of which there must be one."""
    down, across = (inside.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not down:
        raise InputsError("no pixel is above the threshold, so there is no box.")
    return across[0], down[0], across[-1] + 1, down[-1] + 1


def touching(inside: Bool[Tensor, "height width"]) -> Int[Tensor, "height width"]:
    """The number of each pixel's region, counted from 1 line by line; 0 outside."""
    here = inside.cpu().numpy()
    parents: list[int] = []
    labels = np.full(here.shape, -1, dtype=np.int64)
    for y, line in enumerate(here):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for start, end in edges.reshape(-1, 2):
            above = np.unique(labels[y - 1, start:end]) if y else np.empty(0, dtype=np.int64)
            over = [_root(parents, int(one)) for one in above if one >= 0]
            mine = over[0] if over else len(parents)
            if not over:
                parents.append(mine)
            for one in over[1:]:
                mine = _joined(parents, mine, one)
            labels[y, start:end] = mine
    roots = np.asarray([_root(parents, n) for n in range(len(parents))], dtype=np.int64)
    found = np.where(labels >= 0, roots[labels.clip(min=0)] if len(roots) else 0, -1)
    order = {int(root): n + 1 for n, root in enumerate(dict.fromkeys(found[found >= 0].tolist()))}
    return torch.from_numpy(np.vectorize(lambda one: order.get(int(one), 0), otypes=[np.int64])(found))


def _root(parents: list[int], n: int) -> int:
    while parents[n] != n:
        n = parents[n]
    return n


def _joined(parents: list[int], a: int, b: int) -> int:
    low, high = sorted((_root(parents, a), _root(parents, b)))
    parents[high] = low
    return low


def regions(seen: Float[Tensor, "height width"], inside: Bool[Tensor, "height width"]) -> list[Region]:
    """The regions of some pixels, the one with most of the map first."""
    numbers = touching(inside)
    count = int(numbers.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, numbers.flatten(), seen.double().flatten())
    order = sums[1:].argsort(descending=True, stable=True) + 1
    return [Region(numbers == n, float(sums[n])) for n in order.tolist()]


def largest_at(seen: Float[Tensor, "height width"]) -> tuple[float, float]:
    """(x, y), the middle of the pixels with the largest value of the first region that has it."""
    first = regions(seen, seen >= seen.max() * (1 - 1e-9))[0].inside
    down, across = first.nonzero().double().mean(0).tolist()
    return across + 0.5, down + 0.5


def pointing(at: tuple[float, float], boxes: Sequence[Box]) -> bool:
    """Whether a place is in one of the boxes."""
    return any(left <= at[0] < right and top <= at[1] < bottom for left, top, right, bottom in boxes)


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - wide * high
    return wide * high / union if union > 0 else 0.0
