"""The weights of one tile, some heads and rows of a request: scores, edits, softmax, and what is moved after it.

What every edit does to a tile is in `EDITS`, as a function of the edit, the tile and what its stage acts on, as if it
touched all of the tile; in torch's own operators, so that gradients flow through everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.edits import Edit
from interp.kernels.errors import known
from interp.kernels.request import Request

HIDDEN = -1e30
NOWHERE = torch.zeros(0)
"""Means "touches nothing", where None means all."""


@dataclass(frozen=True, eq=False)
class Tile:
    """Query heads [h], places in `request.rows` [r], and the keys [low, high) they can reach.

    `q k v` are those of the heads: taken once for all rows, or a gradient would be as large as all heads for each tile.
    """

    heads: Tensor
    at: Tensor
    low: int
    high: int
    q: Tensor
    k: Tensor
    v: Tensor | None

    def rows(self, made: Request) -> Tensor:
        return made.rows[self.at]

    def keys(self, made: Request) -> Tensor:
        return torch.arange(self.low, self.high, device=made.q.device)


def raw_scores(made: Request, tile: Tile) -> tuple[Tensor, Tensor]:
    """Scores before any edit, fp32 [batch, h, r, keys of the tile], and what is visible."""
    q = pick(tile.q, tile.rows(made), 2).to(made.accumulate)
    k = tile.k[:, :, tile.low : tile.high].to(made.accumulate)
    s = (q * made.scale) @ k.transpose(-1, -2)
    if made.softcap is not None:
        s = made.softcap * torch.tanh(s / made.softcap)
    i, j = made.positions[tile.at], tile.keys(made)
    added = made.mask.additive(i, j)
    if added is not None:
        s = s + _of_heads(added, tile.heads).to(s.dtype)
    return s, _of_heads(made.mask.visible(i, j), tile.heads).expand_as(s)


def edited_scores(made: Request, tile: Tile) -> tuple[Tensor, Tensor]:
    """Scores after temperature, key bias and emphasis, and what is visible after the key masks."""
    s, visible = raw_scores(made, tile)
    for edit in made.score_edits:
        change, where = known(EDITS, edit.form, "edit"), _touched(made, tile, edit)
        if where is not NOWHERE:
            new, seen = change(edit, tile, s, visible)
            s, visible = _only(where, new, s), _only(where, seen, visible)
    return s, visible


@dataclass(frozen=True, eq=False)
class Weights:
    """Final weights of a tile, and what they were made of."""

    p: Tensor
    visible: Tensor
    lse: Tensor
    sink: Tensor
    logs: Tensor | None
    unmoved: Tensor


def weights(made: Request, tile: Tile) -> Weights:
    """The softmax of a tile with its sink, redistributed and blended; `logs` are ln p where nothing was blended."""
    s, visible = edited_scores(made, tile)
    s = s.masked_fill(~visible, HIDDEN)
    sees = visible.any(-1, keepdim=True)
    top = s.detach().amax(-1, keepdim=True)
    total = top + (s - top).exp().sum(-1, keepdim=True).log()
    sink, share = _sink(made, tile, total, sees)
    logs = (s - total + share).masked_fill(~visible, HIDDEN)
    logs, stuck = _changed(made, tile, made.moving_edits, logs, visible, share)
    p, stayed = _changed(made, tile, made.weight_edits, logs.exp() * visible, visible, share)
    lse = total.masked_fill(~sees, -torch.inf).squeeze(-1)
    return Weights(p, visible, lse, sink.squeeze(-1), None if made.weight_edits else logs, stuck + stayed)


def _sink(made: Request, tile: Tile, total: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves: exact where the sink takes nearly all."""
    if made.sinks is None:
        return torch.zeros_like(total), torch.zeros_like(total)
    above = made.sinks.to(total)[tile.heads][None, :, None, None] - total.masked_fill(~sees, 0.0)
    share = torch.nn.functional.logsigmoid(-above)
    return torch.sigmoid(above).masked_fill(~sees, 1.0), share.masked_fill(~sees, 0.0)


def _changed(
    made: Request, tile: Tile, edits: Iterable[Edit], x: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """ln p or p after these edits, and how many rows could not be changed; `share` as a logarithm [batch, h, r, 1]."""
    unmoved = torch.zeros((), dtype=torch.long, device=x.device)
    for edit in edits:
        change, where = known(EDITS, edit.form, "edit"), _touched(made, tile, edit)
        if where is not NOWHERE:
            new, able = change(edit, made, tile, x, visible, share)
            sees = visible.any(-1, keepdim=True)
            asked = sees if where is None else sees & where
            x = torch.where(asked & able, new, x)
            unmoved = unmoved + (asked & ~able).sum()
    return x, unmoved


def _touched(made: Request, tile: Tile, edit: Edit) -> Tensor | None:
    """What the edit touches of the tile: None for all of it, NOWHERE for nothing."""
    found = edit.where(tile.heads, tile.rows(made))
    return found if found is None or bool(found.any()) else NOWHERE


def _temperature(edit: E.Temperature, tile: Tile, s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return s / E.per_head(edit.value, tile.heads, s), visible


def _bias_keys(edit: E.BiasKeys, tile: Tile, s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return s + edit.amount * members(edit.keys, tile, s), visible


def _emphasize(edit: E.Emphasize, tile: Tile, s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return s + edit.amount * members(edit.keys, tile, s) * s.abs(), visible


def _mask_keys(edit: E.MaskKeys, tile: Tile, s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return s, visible & ~members(edit.keys, tile, visible)


def _redistribute(
    edit: E.Redistribute, made: Request, tile: Tile, logs: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """In logarithms, so that neither a target of next to no weight nor its gradient divides by nearly 0."""
    source, target = (members(x, tile, visible) for x in edit.sets())
    l_source, l_target = (logs.masked_fill(~x, HIDDEN).logsumexp(-1, keepdim=True) for x in (source, target))
    able = l_target > HIDDEN / 2
    more = l_source + _log(edit.fraction) - l_target.masked_fill(~able, 0.0)
    new = torch.where(target, logs + torch.logaddexp(torch.zeros_like(more), more), logs)
    return torch.where(source, (logs + _log(1 - edit.fraction)).clamp(min=HIDDEN), new), able


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _to_identity(
    edit: E.Blend, made: Request, tile: Tile, p: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    own = tile.keys(made)[None, :] == made.positions[tile.at][:, None]
    return _toward(edit, p, share, (own & visible).to(p.dtype))


def _to_uniform(
    edit: E.Blend, made: Request, tile: Tile, p: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    return _toward(edit, p, share, visible.to(p.dtype) / visible.sum(-1, keepdim=True).clamp(min=1))


def _toward(edit: E.Blend, p: Tensor, share: Tensor, ideal: Tensor) -> tuple[Tensor, Tensor]:
    return p + edit.amount * (share.exp() * ideal - p), ideal.amax(-1, keepdim=True) > 0


EDITS: dict[E.Form, Callable[..., tuple[Tensor, Tensor]]] = {
    E.Temperature: _temperature,
    E.BiasKeys: _bias_keys,
    E.Emphasize: _emphasize,
    E.MaskKeys: _mask_keys,
    E.Redistribute: _redistribute,
    (E.Blend, "identity"): _to_identity,
    (E.Blend, "uniform"): _to_uniform,
}


def gated(made: Request, tile: Tile, z: Tensor) -> Tensor:
    for edit in E.only(made.output_edits, E.Gate):
        z = _only(edit.where(tile.heads, tile.rows(made)), z * E.per_head(edit.value, tile.heads, z), z)
    return z


def _only(touched: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if touched is None or new is old else torch.where(touched, new, old)


def members(keys: Tensor, tile: Tile, like: Tensor) -> Tensor:
    found = E.key_set("a key set", keys)[:, tile.low : tile.high].to(like.device)
    return found[:, None, None, :].to(like.dtype)


def _of_heads(x: Tensor, heads: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else pick(x, heads, 1)


def pick(x: Tensor, at: Tensor, axis: int) -> Tensor:
    """Some indices of an axis, as a view where they are a run."""
    first, last = int(at[0]), int(at[-1])
    if last - first == len(at) - 1 and (len(at) == 1 or bool((at.diff() == 1).all())):
        return x.narrow(axis, first, len(at))
    return x.index_select(axis, at)
