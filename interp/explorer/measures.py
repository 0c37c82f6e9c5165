"""What can be said of every head without a task: how it spreads its attention, with intervals over examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.explorer.looks import pattern_of
from interp.hooks.anatomy import Tower
from interp.hooks.inputs import Inputs
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model

STATS = {
    "entropy": ("nats", "How widely a head spreads its attention, averaged over rows: 0 is one key."),
    "first": ("weight", "Weight on the first token (of a picture tower its class token), averaged over rows."),
    "previous": ("weight", "Weight on the token just before, averaged over rows."),
    "self": ("weight", "Weight on the token itself, averaged over rows."),
    "distance": ("tokens", "Mean distance between a token and what it attends to."),
}
DRAWS = 1000


def measured(model: Model, x: Inputs, towers: list[tuple[Tower, Inputs]]) -> list[dict[str, Any]]:
    """Long rows of every statistic: the mean over examples of the mean over real rows; a bootstrap interval where there
    are several examples."""
    rows = []
    for tower, own in towers:
        found = model.attention(x, stats=list(STATS), heads=pattern_of(model, tower))
        real = own.valid.cpu()
        for site, stats in found.values.items():
            for name in STATS:
                values = stats[name].cpu().double()  # example, head, row
                mean = (values * real[:, None]).sum(2) / real.sum(1)[:, None]
                rows += _rows(
                    [str(Site(site.tower, site.layer, "attention", (h,))) for h in found.heads[site]], name, mean
                )
    return rows


def _rows(sites: list[str], name: str, values: Tensor) -> list[dict[str, Any]]:
    """One row a head of values [example, head]."""
    count, mean = len(values), values.mean(0).tolist()
    rows: list[dict[str, Any]] = [
        {"site": site, "method": name, "n": count, "estimate": one} for site, one in zip(sites, mean, strict=True)
    ]
    if count == 1:
        return rows
    picks = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(DRAWS, count, dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.full(picks.shape, 1 / count, dtype=torch.float64))
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(weights @ values, bounds, dim=0).tolist()
    return [{**row, "low": a, "high": b} for row, a, b in zip(rows, low, high, strict=True)]


def described() -> dict[str, dict[str, Any]]:
    """What the page says about them."""
    return {name: {"kind": "sequential", "unit": unit, "about": about} for name, (unit, about) in STATS.items()}
