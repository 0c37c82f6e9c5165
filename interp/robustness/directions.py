"""Changes of attention as vectors: what may be changed, norms over heads and rows, and directions in it.

A change is a tensor [row, head, query, key] a layer. It lives on keys that a query sees, in rows of real queries, and
sums to 0 over each query's keys: a constant added to scores does nothing, and a pattern's rows keep their sum. A cell
is the heads that are changed together; norms are per example and cell, over all of its heads, queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import InputsError

Change = Mapping[str, Tensor]
"""By site, "L0.H1-2.scores"."""
TINY = 1e-30


@dataclass(frozen=True, eq=False)
class ScoreSpace:
    """Where attention may be changed: bool [row, head, query, key] by site; and the cells as (site, head) pairs."""

    seen: Change
    cells: Mapping[str, Sequence[tuple[str, int]]]

    def only(self, change: Change, cell: str) -> dict[str, Tensor]:
        """The part of a change that is in a cell."""
        found = {site: torch.zeros_like(value) for site, value in change.items()}
        for site, head in self.cells[cell]:
            found[site][:, head] = change[site][:, head]
        return found

    def projected(self, change: Change) -> dict[str, Tensor]:
        """The nearest change that is allowed: 0 where nothing is seen, centred over each query's keys."""
        found = {}
        for site, value in change.items():
            mask = self.seen[site]
            kept = torch.where(mask, value.to(torch.promote_types(value.dtype, torch.float32)), 0.0)
            mean = kept.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            found[site] = torch.where(mask, kept - mean, 0.0)
        return found

    def random(self, seed: int) -> dict[str, Tensor]:
        """A normal draw, made allowed."""
        generator = torch.Generator().manual_seed(seed)
        draws = {site: torch.randn(mask.shape, generator=generator).to(mask.device) for site, mask in self.seen.items()}
        return self.projected(draws)

    def differences(self, scores: Change) -> list[dict[str, Tensor]]:
        """Unit directions from each example's scores to those of the k-th after it, for every k but itself."""
        for site, mask in self.seen.items():
            if len(mask) < 2 or bool((mask != mask[:1]).any()):
                raise InputsError(
                    f"along='differences' compares the attention of examples with each other, and {site} sees"
                    f" {len(mask)} of them: give at least two, of one length and without padding."
                )
        count = len(next(iter(self.seen.values())))
        clean = {site: torch.where(self.seen[site], value, 0.0) for site, value in scores.items()}
        return [self.projected({s: v.roll(-k, 0) - v for s, v in clean.items()}) for k in range(1, count)]


def inner(a: Change, b: Change) -> Tensor:
    """[row], the product of two changes."""
    parts = [(a[site].double() * b[site].double()).flatten(1).sum(1).cpu() for site in a]
    return torch.stack(parts).sum(0)


def norm(change: Change) -> Tensor:
    """[row]."""
    return inner(change, change).sqrt()


def scaled(change: Change, factor: Tensor | float) -> dict[str, Tensor]:
    """A change times a number a row."""
    rows = len(next(iter(change.values())))
    each = torch.as_tensor(factor).expand(rows)
    return {site: value * each.to(value).view(-1, 1, 1, 1) for site, value in change.items()}


def unit(change: Change) -> dict[str, Tensor]:
    """Of norm 1 per row; 0 where nothing has a direction."""
    size = norm(change)
    return scaled(change, torch.where(size > TINY, 1 / size.clamp(min=TINY), 0.0))


def spanned(slope: Change, directions: Sequence[Change]) -> dict[str, Tensor]:
    """`sum_k <slope, d_k> d_k`: the slope's gradient by the weights of unit directions, put into effect."""
    found = {site: torch.zeros_like(value) for site, value in slope.items()}
    for one in directions:
        step = scaled(one, inner(slope, one))
        found = {site: value + step[site] for site, value in found.items()}
    return found
