"""Statistics of one tile, from its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interp.kernels.cpu.tile_weights import Tile, Weights, members
from interp.kernels.request import Found, Request
from interp.kernels.stats import Stat


def _entropy(w: Weights) -> Tensor:
    if w.logs is not None:
        return -(w.p * w.logs).sum(-1)
    some = w.p > 0
    return -(w.p * w.p.masked_fill(~some, 1.0).log()).sum(-1)


def _argmax(w: Weights, low: int) -> Tensor:
    best = w.p.masked_fill(~w.visible, -1.0).argmax(-1) + low
    return best.masked_fill(~w.visible.any(-1), -1)


def _far(made: Request, tile: Tile) -> Tensor:
    """How far each key is from each row."""
    i, j = made.positions[tile.at], tile.keys(made)
    if made.places is None:
        return (i[:, None] - j[None, :]).abs()
    places = made.places.to(j.device)
    return torch.cdist(places[i], places[j], compute_mode="donot_use_mm_for_euclid_dist")


def _on_first(made: Request, tile: Tile, w: Weights) -> Tensor:
    assert made.first is not None
    return _with(w, (tile.keys(made)[None, :] == made.first[:, None])[:, None, None, :])


def _on_key(made: Request, tile: Tile, w: Weights, *, back: int) -> Tensor:
    return _with(w, tile.keys(made)[None, :] == (made.positions[tile.at] - back)[:, None])


def _with(w: Weights, feature: Tensor) -> Tensor:
    """The sum of the weights times a number for each of them."""
    return (w.p * feature.to(w.p.dtype)).sum(-1)


def _topk(s: Stat, w: Weights, low: int) -> Found:
    values, at = w.p.masked_fill(~w.visible, -1.0).topk(min(s.k, w.p.shape[-1]), dim=-1)
    values, at = (torch.nn.functional.pad(x, (0, s.k - x.shape[-1]), value=-1) for x in (values, at))
    return {s.name: values.clamp(min=0.0), s.name + ".keys": (at + low).masked_fill(values < 0, -1)}


def _received(w: Weights) -> Found:
    return {"received": w.p.sum(2)}


def _seen(w: Weights) -> Found:
    return {"seen": w.visible.sum(2)}


STATS: dict[str, Callable[[Stat, Request, Tile, Weights], Found]] = {
    "lse": lambda s, made, tile, w: {s.name: w.lse},
    "sink": lambda s, made, tile, w: {s.name: w.sink},
    "entropy": lambda s, made, tile, w: {s.name: _entropy(w)},
    "max": lambda s, made, tile, w: {s.name: w.p.amax(-1)},
    "argmax": lambda s, made, tile, w: {s.name: _argmax(w, tile.low)},
    "topk": lambda s, made, tile, w: _topk(s, w, tile.low),
    "distance": lambda s, made, tile, w: {s.name: _with(w, _far(made, tile))},
    "first": lambda s, made, tile, w: {s.name: _on_first(made, tile, w)},
    "previous": lambda s, made, tile, w: {s.name: _on_key(made, tile, w, back=1)},
    "self": lambda s, made, tile, w: {s.name: _on_key(made, tile, w, back=0)},
    "mass": lambda s, made, tile, w: {s.name: _with(w, members(made.key_sets[s.argument], tile, w.p))},
    "received": lambda s, made, tile, w: _received(w),
    "seen": lambda s, made, tile, w: _seen(w),
    "received_mean": lambda s, made, tile, w: _received(w) | _seen(w),
}
"""What each is computed from in one tile, under its name; per key over the keys of the tile."""
