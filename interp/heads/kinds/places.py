"""Kinds of heads that go by place: always the same step away, or near by, in a text or on a grid of patches.

Positional: Voita et al. 2019 (arXiv 1905.09418) call a head positional if at least 90% of its rows have their largest
weight at one fixed step; the value is the share of rows at the head's commonest step, which the result names. Local
(own definition): the weight within `WINDOW` places, averaged over the rows that see more than those; on a grid within
`RADIUS` in both directions (the Chebyshev distance), class token and registers taking no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.heads.kinds.kind import Relation
from interp.heads.kinds.page import Page

SHARE = 0.9
"""From which share of rows on Voita et al. call a head positional."""
WINDOW = 3
RADIUS = 1


def local(page: Page, at: Tensor) -> Tensor:
    """Keys near by, for rows that also see others."""
    return _near_on_grid(page, at) if page.picture else _near_in_text(page, at)


def _near_in_text(page: Page, at: Tensor) -> Tensor:
    j = torch.arange(page.length)[None]
    near = ((j - at[:, None]).abs() <= WINDOW)[None] & page.valid[:, None] & page.valid[:, at, None]
    further = page.first[:, None] < at[None] - WINDOW
    if not page.causal:
        further = further | (page.valid.int() * torch.arange(page.length)).amax(1)[:, None].gt(at[None] + WINDOW)
    return near & further[:, :, None]


def _near_on_grid(page: Page, at: Tensor) -> Tensor:
    rows, keys = page.cells[:, at, None], page.cells[:, None]
    together = (rows[..., :2] == keys[..., :2]).all(-1)
    near = (rows[..., 2:] - keys[..., 2:]).abs().amax(-1) <= RADIUS
    return near & together & page.patch[:, at, None] & page.patch[:, None]


@dataclass(frozen=True)
class Positional:
    """The share of rows whose largest weight is at the head's commonest step."""

    name: str = "positional"

    def refuses(self, page: Page) -> str | None:
        if page.picture and not bool(page.patch.any()):
            return "the places of this tower's patches are not known"
        return None if bool((page.valid.sum(1) > 1).all()) else "an example has a single token"

    def meter(self, page: Page) -> PositionalMeter:
        return PositionalMeter(page)


class PositionalMeter:
    """Counts the steps to each row's largest weight."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sides = tuple(int(page.cells[..., n].amax()) + 1 for n in (2, 3)) if page.picture else (1, page.length)
        self.counts: Tensor | None = None

    def take(self, at: Tensor, weights: Tensor) -> None:
        page, at = self.page, at.cpu()
        if page.picture:
            weights = weights.masked_fill(~page.patch[:, None, None].to(weights.device), -1.0)
        best = weights.argmax(-1).cpu()
        down, across = self._steps(at, best)
        rows, cols = self.sides
        code = (down + rows - 1) * (2 * cols - 1) + across + cols - 1
        counted = (page.patch if page.picture else page.valid)[:, None, at].expand_as(best)
        counts = torch.zeros(*best.shape[:2], (2 * rows - 1) * (2 * cols - 1), dtype=torch.double)
        counts.scatter_add_(2, code.where(counted, 0), counted.double())
        self.counts = counts if self.counts is None else self.counts + counts

    def _steps(self, at: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        if not self.page.picture:
            return torch.zeros_like(best), best - at
        cells = self.page.cells
        to = torch.stack([one[i] for one, i in zip(cells, best, strict=True)])
        step = (to - cells[:, None, at])[..., 2:].where(self.page.patch[:, None, at, None], 0)
        return step[..., 0], step[..., 1]

    def result(self) -> tuple[Tensor, list[str]]:
        assert self.counts is not None
        commonest = self.counts.sum(0).argmax(-1)
        hits = self.counts.gather(2, commonest[None, :, None].expand(len(self.counts), -1, 1)).squeeze(2)
        rows, cols = self.sides
        steps = [(c // (2 * cols - 1) - rows + 1, c % (2 * cols - 1) - cols + 1) for c in commonest.tolist()]
        said = [f"({down:+d},{across:+d})" if self.page.picture else f"{across:+d}" for down, across in steps]
        return (hits / self.counts.sum(2)).T, said


POSITIONAL = Positional()
LOCAL = Relation("local", local, lambda page: None)
