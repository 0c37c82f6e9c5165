"""What can be said of every head without a task: how it spreads its attention, with intervals over examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.explorer.looks import pattern_of
from interp.finite import finite
from interp.hooks.anatomy.towers import Tower
from interp.hooks.head_names import heads_at
from interp.hooks.inputs.inputs import Inputs
from interp.results.heads_table import HeadTable

if TYPE_CHECKING:
    from interp.model import Model

STATS = {
    "entropy": ("nats", "How widely a head spreads its attention, averaged over rows: 0 is one key."),
    "first": ("weight", "Weight on the first token (of a picture tower its class token), averaged over rows."),
    "previous": ("weight", "Weight on the token just before, averaged over rows."),
    "self": ("weight", "Weight on the token itself, averaged over rows."),
    "distance": ("tokens", "Mean distance between a token and what it attends to; in a picture between patches alone."),
}

CROSSED = ("entropy", "first")
"""What has a meaning of rows and keys that are two sequences."""


def measured(model: Model, x: Inputs, tower: Tower, own: Inputs) -> list[dict[str, Any]] | None:
    """Long rows of every statistic: the mean over examples of the mean over real rows, with its interval over examples.
    None where attention has no one row a token, as in the windows of Swin."""
    names = [name for name in STATS if name != "distance" or not _several_grids(own)]
    found, real, rows = model.attention(x, stats=names, heads=pattern_of(model, tower)), own.valid.cpu(), []
    for site, stats in found.values.items():
        heads = heads_at(site, found.heads[site])
        for name in names:
            values = stats[name].cpu().double()  # example, head, row
            if values.shape[0] != real.shape[0] or values.shape[2] != real.shape[1]:
                return None
            mean = (values * real[:, None]).sum(2) / real.sum(1)[:, None]
            rows += _rows(heads, name, finite(mean, f"{name} of the heads"))
    return rows


def crossed_measures(model: Model, x: Inputs, tower: Tower, own: Inputs) -> list[dict[str, Any]]:
    """The same of cross-attention, of what has a meaning between two sequences: `own` are the positions of its rows."""
    found, real, rows = model.attention(x, stats=CROSSED, heads=pattern_of(model, tower, kind="cross")), own.valid, []
    for site, stats in found.values.items():
        for name in CROSSED:
            mean = (stats[name].cpu().double() * real.cpu()[:, None]).sum(2) / real.cpu().sum(1)[:, None]
            rows += _rows(heads_at(site, found.heads[site]), name, finite(mean, f"{name} of the heads"))
    return rows


def _several_grids(own: Inputs) -> bool:
    """Pictures of several shapes: their patches are not on one grid, on which distances could be taken."""
    places = torch.stack([own.roles.frame, own.roles.row, own.roles.col], -1)
    return own.ids is None and not bool((places == places[:1]).all())


def _rows(sites: list[str], name: str, values: Tensor) -> list[dict[str, Any]]:
    """One row a head of values [example, head]."""
    frame = HeadTable(tuple(sites), values.T, name).frame()
    rows: list[dict[str, Any]] = frame[["site", "method", "n", "estimate", "low", "high"]].to_dict("records")
    return rows


def described() -> dict[str, dict[str, Any]]:
    """What the page says about them."""
    return {name: {"kind": "sequential", "unit": unit, "about": about} for name, (unit, about) in STATS.items()}
