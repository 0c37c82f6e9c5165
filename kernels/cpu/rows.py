"""Scores and weights of chosen heads and rows, and whole attention calls a few rows at a time.

`scores` and `pattern` give what is asked for and hold no more than that. `attend` goes over heads and rows in tiles of
about half a million numbers, takes every edit and statistic, and is differentiable: with a gradient wanted each tile is
recomputed in the backward pass, so memory stays linear in the number of tokens there too. Cost: the operations of
attention, at the speed of torch's plain operators; twice the forward when a gradient is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp.kernels import edits as E
from interp.kernels.edits import Edit
from interp.kernels.errors import AttentionError
from interp.kernels.masks.symbols import Mask
from interp.kernels.request import Request, Rows, request
from interp.kernels.stats import Stat, ratio

TILE = 2**19
HIDDEN = -1e30

Found = dict[str, Tensor]


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


def scores(
    q: Tensor,
    k: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    edits: Iterable[Edit] | Edit | None = None,
    heads: Sequence[int] | None = None,
    rows: Rows = None,
) -> Tensor:
    """What enters the softmax, fp32 [batch, len(heads), len(rows), key]; -inf where the row does not see the key."""
    made = request(q, k, None, mask=mask, scale=scale, softcap=softcap, bias=bias, edits=edits, rows=rows)
    return _assembled(made, heads, lambda t: _hidden(*edited_scores(made, t)), fill=-torch.inf)


def pattern(
    q: Tensor,
    k: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    edits: Iterable[Edit] | Edit | None = None,
    heads: Sequence[int] | None = None,
    rows: Rows = None,
) -> Tensor:
    """The weights, fp32 [batch, len(heads), len(rows), key]; rows sum to 1, less the learned sink's share; 0 when
    blind.
    """
    made = request(q, k, None, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks, edits=edits, rows=rows)
    return _assembled(made, heads, lambda t: weights(made, t).p, fill=0.0)


def _hidden(s: Tensor, visible: Tensor) -> Tensor:
    return s.masked_fill(~visible, -torch.inf)


def _assembled(made: Request, heads: Sequence[int] | None, compute: Callable[[Tile], Tensor], *, fill: float) -> Tensor:
    chosen = _chosen_heads(made, heads)
    by_head = []
    for tiles in _tiles(made, chosen):
        parts = [torch.nn.functional.pad(compute(t), (t.low, made.keys - t.high), value=fill) for t in tiles]
        by_head.append(torch.cat(parts, 2) if len(parts) > 1 else parts[0])
    return torch.cat(by_head, 1) if len(by_head) > 1 else by_head[0]


def _chosen_heads(made: Request, heads: Sequence[int] | None) -> Tensor:
    found = torch.arange(made.heads) if heads is None else torch.tensor([int(h) for h in heads], dtype=torch.long)
    if len(found) == 0 or int(found.min()) < 0 or int(found.max()) >= made.heads:
        raise AttentionError(f"query heads must be in 0..{made.heads - 1}, at least one; got {heads!r}")
    return found.to(made.q.device)


def _tiles(made: Request, heads: Tensor) -> Iterator[list[Tile]]:
    """For each run of heads the tiles that cover all rows."""
    per_head = made.batch * len(made.rows) * made.keys
    together = max(1, min(len(heads), TILE // max(per_head, 1)))
    step = max(1, min(len(made.rows), TILE // max(made.batch * made.keys * together, 1)))
    spans = [_tile_span(made, a, min(a + step, len(made.rows))) for a in range(0, len(made.rows), step)]
    for h in range(0, len(heads), together):
        run = heads[h : h + together]
        q, k = _pick(made.q, run, 1), _pick(made.k, run // made.group, 1)
        v = None if made.v is None else _pick(made.v, run // made.group, 1)
        yield [Tile(run, at, low, high, q, k, v) for at, low, high in spans]


def _tile_span(made: Request, a: int, b: int) -> tuple[Tensor, int, int]:
    ends = made.positions[[a, b - 1]].tolist()
    low, high = made.mask.reach(ends[0], ends[1], made.keys)
    low = max(0, min(low, made.keys - 1))
    return torch.arange(a, b, device=made.q.device), low, min(max(high, low + 1), made.keys)


def raw_scores(made: Request, tile: Tile) -> tuple[Tensor, Tensor]:
    """Scores before any edit, fp32 [batch, h, r, keys of the tile], and what is visible."""
    q = _pick(tile.q, tile.rows(made), 2).to(made.accumulate)
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
    for edit in made.edits:
        if edit.stage < E.Redistribute.stage:
            s, visible = _score_stage(made, tile, edit, s, visible)
    return s, visible


def _score_stage(made: Request, tile: Tile, edit: Edit, s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    touched = edit.where(tile.heads, tile.rows(made))
    if touched is not None and not bool(touched.any()):
        return s, visible
    if isinstance(edit, E.Temperature):
        return _only(touched, s / E.per_head(edit.value, tile.heads, s), s), visible
    if isinstance(edit, E.BiasKeys):
        return _only(touched, s + edit.amount * _keys(edit.keys, tile, s), s), visible
    if isinstance(edit, E.Emphasize):
        return _only(touched, s + edit.amount * _keys(edit.keys, tile, s) * s.abs(), s), visible
    if isinstance(edit, E.MaskKeys):
        return s, _only(touched, visible & ~_keys(edit.keys, tile, visible), visible)
    raise AttentionError(f"{type(edit).__name__} has no meaning for scores")


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
    sees = visible.any(-1)
    top = s.detach().amax(-1, keepdim=True)
    total = top.squeeze(-1) + (s - top).exp().sum(-1).log()
    sink, share = _sink(made, tile, total, sees)
    logs = (s - total.unsqueeze(-1) + share.unsqueeze(-1)).masked_fill(~visible, HIDDEN)
    logs, stuck = _redistributed(made, tile, logs, sees)
    p, stayed = _blended(made, tile, logs.exp() * visible, visible, share.exp())
    blended = any(isinstance(e, E.Blend) for e in made.edits)
    return Weights(p, visible, total.masked_fill(~sees, -torch.inf), sink, None if blended else logs, stuck + stayed)


def _sink(made: Request, tile: Tile, total: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves: exact where the sink takes nearly all."""
    if made.sinks is None:
        return torch.zeros_like(total), torch.zeros_like(total)
    above = made.sinks.to(total)[tile.heads][None, :, None] - total.masked_fill(~sees, 0.0)
    share = torch.nn.functional.logsigmoid(-above)
    return torch.sigmoid(above).masked_fill(~sees, 1.0), share.masked_fill(~sees, 0.0)


def _redistributed(made: Request, tile: Tile, logs: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """ln p after all redistributions, and how many rows could not be moved.

    In logarithms, so that neither a target of next to no weight nor its gradient divides by nearly 0.
    """
    unmoved = torch.zeros((), dtype=torch.long, device=logs.device)
    for edit in made.edits:
        touched = edit.where(tile.heads, tile.rows(made))
        if not isinstance(edit, E.Redistribute) or (touched is not None and not bool(touched.any())):
            continue
        source, target = (_keys(x, tile, sees) for x in edit.sets())
        l_source, l_target = (logs.masked_fill(~x, HIDDEN).logsumexp(-1, keepdim=True) for x in (source, target))
        able, asked = l_target > HIDDEN / 2, (sees if touched is None else sees & touched.squeeze(-1)).unsqueeze(-1)
        more = l_source + _log(edit.fraction) - l_target.masked_fill(~able, 0.0)
        new = torch.where(target, logs + torch.logaddexp(torch.zeros_like(more), more), logs)
        new = torch.where(source, (logs + _log(1 - edit.fraction)).clamp(min=HIDDEN), new)
        logs = torch.where(asked & able, new, logs)
        unmoved = unmoved + (asked & ~able).sum()
    return logs, unmoved


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _blended(made: Request, tile: Tile, p: Tensor, visible: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """p after all blends, and how many rows could not be moved; `share` is what the learned sink leaves."""
    unmoved, sees = torch.zeros((), dtype=torch.long, device=p.device), visible.any(-1)
    for edit in made.edits:
        touched = edit.where(tile.heads, tile.rows(made))
        if not isinstance(edit, E.Blend) or (touched is not None and not bool(touched.any())):
            continue
        ideal = _ideal(edit, made, tile, visible).to(p.dtype)
        able, asked = ideal.amax(-1) > 0, sees if touched is None else sees & touched.squeeze(-1)
        new = p + edit.amount * (share.unsqueeze(-1) * ideal - p)
        p = torch.where((asked & able).unsqueeze(-1), new, p)
        unmoved = unmoved + (asked & ~able).sum()
    return p, unmoved


def _ideal(edit: E.Blend, made: Request, tile: Tile, visible: Tensor) -> Tensor:
    """What a blend goes to."""
    if edit.to == "uniform":
        return visible / visible.sum(-1, keepdim=True).clamp(min=1)
    return (tile.keys(made)[None, :] == made.positions[tile.at][:, None]) & visible


def attend(made: Request) -> tuple[Tensor | None, Tensor, Found, Found]:
    """z [batch, head, row, dv] in v's dtype, log-sum-exp, statistics and counts, any edits, tile by tile."""
    runs = _tiles(made, _chosen_heads(made, None))
    by_head = [_joined_rows(made, [_maybe_recomputed(made, t) for t in tiles], tiles) for tiles in runs]
    found = {n: torch.cat([b[n] for b in by_head], 1) for n in by_head[0] if not n.startswith("#")}
    counts = {n[1:]: torch.stack([b[n] for b in by_head]).sum() for n in by_head[0] if n.startswith("#")}
    z, lse = found.pop("z", None), found.pop("_lse")
    return (None if z is None else z.to(made.q.dtype)), lse, _finished(made, found), counts


def _maybe_recomputed(made: Request, tile: Tile) -> Found:
    if made.gradient():
        found: Found = checkpoint(_attend_tile, made, tile, use_reentrant=False, preserve_rng_state=False)
        return found
    return _attend_tile(made, tile)


def _joined_rows(made: Request, parts: list[Found], tiles: list[Tile]) -> Found:
    joined = {}
    for name in parts[0]:
        values = [p[name] for p in parts]
        if name.startswith("#"):
            joined[name] = torch.stack(values).sum()
        elif name in ("received", "seen"):
            padded = [
                torch.nn.functional.pad(x, (t.low, made.keys - t.high)) for x, t in zip(values, tiles, strict=True)
            ]
            joined[name] = torch.stack(padded).sum(0) if len(padded) <= 64 else _sum(padded)
        else:
            joined[name] = torch.cat(values, 2) if len(values) > 1 else values[0]
    return joined


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _finished(made: Request, found: Found) -> Found:
    result = {}
    for s in made.stats:
        result[s.name] = ratio(found["received"], found["seen"]) if s.kind == "received_mean" else found[s.name]
        if s.kind == "topk":
            result[s.name + ".keys"] = found[s.name + ".keys"]
    return result


def _attend_tile(made: Request, tile: Tile) -> Found:
    w = weights(made, tile)
    found = {"_lse": w.lse, "#blind": (~w.visible.any(-1)).sum(), "#unmoved": w.unmoved}
    if tile.v is not None:
        found["z"] = _gated(made, tile, w.p @ tile.v[:, :, tile.low : tile.high].to(w.p.dtype))
    for s in made.stats:
        found |= statistic(s, made, tile, w)
    return found


def _gated(made: Request, tile: Tile, z: Tensor) -> Tensor:
    for edit in made.edits:
        if isinstance(edit, E.Gate):
            z = _only(edit.where(tile.heads, tile.rows(made)), z * E.per_head(edit.value, tile.heads, z), z)
    return z


def statistic(s: Stat, made: Request, tile: Tile, w: Weights) -> Found:
    """One statistic of a tile, under its name; per key over the keys of the tile."""
    p = w.p
    if s.kind == "topk":
        values, at = _topk(s.k, p, w.visible)
        return {s.name: values, s.name + ".keys": torch.where(at >= 0, at + tile.low, at)}
    if s.kind == "argmax":
        best = p.masked_fill(~w.visible, -1.0).argmax(-1) + tile.low
        return {"argmax": best.masked_fill(~w.visible.any(-1), -1)}
    if s.per_key:
        found = {"seen": w.visible.sum(2)} if s.kind != "received" else {}
        return found | ({"received": p.sum(2)} if s.kind != "seen" else {})
    simple = {"lse": lambda: w.lse, "sink": lambda: w.sink, "entropy": lambda: _entropy(w), "max": lambda: p.amax(-1)}
    return {s.name: simple[s.kind]() if s.kind in simple else (p * _feature(s, made, tile, p)).sum(-1)}


def _entropy(w: Weights) -> Tensor:
    if w.logs is not None:
        return -(w.p * w.logs).sum(-1)
    some = w.p > 0
    return -(w.p * w.p.masked_fill(~some, 1.0).log()).sum(-1)


def _feature(s: Stat, made: Request, tile: Tile, like: Tensor) -> Tensor:
    """What the weights are summed with."""
    i, j = made.positions[tile.at], tile.keys(made)
    if s.kind == "mass":
        return _keys(made.key_sets[s.argument], tile, like)
    if s.kind == "distance":
        return _distance(made, i, j).to(like.dtype)
    if s.kind == "first" and made.first is not None:
        return (j[None, :] == made.first[:, None]).to(like.dtype)[:, None, None, :]
    return (j[None, :] == (i - (1 if s.kind == "previous" else 0))[:, None]).to(like.dtype)


def _distance(made: Request, i: Tensor, j: Tensor) -> Tensor:
    if made.places is None:
        return (i[:, None] - j[None, :]).abs()
    places = made.places.to(j.device)
    return torch.cdist(places[i], places[j], compute_mode="donot_use_mm_for_euclid_dist")


def _topk(k: int, p: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    ranked = p.masked_fill(~visible, -1.0)
    values, at = ranked.topk(min(k, p.shape[-1]), dim=-1)
    values, at = (torch.nn.functional.pad(x, (0, k - x.shape[-1]), value=-1) for x in (values, at))
    return values.clamp(min=0.0), at.masked_fill(values < 0, -1)


def _only(touched: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if touched is None else torch.where(touched, new, old)


def _keys(keys: Tensor, tile: Tile, like: Tensor) -> Tensor:
    found = E.key_set("a key set", keys)[:, tile.low : tile.high].to(like.device)
    return found[:, None, None, :].to(like.dtype)


def _of_heads(x: Tensor, heads: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else _pick(x, heads, 1)


def _pick(x: Tensor, at: Tensor, axis: int) -> Tensor:
    """Some indices of an axis, as a view where they are a run."""
    first, last = int(at[0]), int(at[-1])
    if last - first == len(at) - 1 and (len(at) == 1 or bool((at.diff() == 1).all())):
        return x.narrow(axis, first, len(at))
    return x.index_select(axis, at)
