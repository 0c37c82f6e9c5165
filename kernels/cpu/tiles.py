"""Scores and weights of chosen heads and rows, and whole attention calls a few rows at a time.

`scores` and `pattern` give what is asked for and hold no more than that. `attend` goes over heads and rows in tiles of
about half a million numbers, takes every edit and statistic, and is differentiable: with a gradient wanted each tile is
recomputed in the backward pass, so memory stays linear in the number of tokens there too. Cost: the operations of
attention, at the speed of torch's plain operators; twice the forward when a gradient is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp.kernels import edits as E
from interp.kernels.abilities import ANY, FLOATS, Abilities
from interp.kernels.cpu.tile_stats import STATS
from interp.kernels.cpu.tile_weights import EDITS, Tile, edited_scores, gated, pick, weights
from interp.kernels.edits import Edit
from interp.kernels.errors import AttentionError, known, said
from interp.kernels.masks.symbols import Mask
from interp.kernels.request import Computed, Found, Request, Rows, request
from interp.kernels.stats import KINDS, ratio

TILE = 2**19


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
    late = [said(e.form) for e in made.moving_edits + made.weight_edits + made.output_edits]
    if late:
        raise AttentionError(f"{', '.join(late)} act after the scores: ask for the pattern, or leave them out")
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
    ABLE.demand(made)
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
        q, k = pick(made.q, run, 1), pick(made.k, run // made.group, 1)
        v = None if made.v is None else pick(made.v, run // made.group, 1)
        yield [Tile(run, at, low, high, q, k, v) for at, low, high in spans]


def _tile_span(made: Request, a: int, b: int) -> tuple[Tensor, int, int]:
    ends = made.positions[[a, b - 1]].tolist()
    low, high = made.mask.reach(ends[0], ends[1], made.keys)
    low = max(0, min(low, made.keys - 1))
    return torch.arange(a, b, device=made.q.device), low, min(max(high, low + 1), made.keys)


def attend(made: Request) -> Computed:
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
    return {n: _joined(n, [p[n] for p in parts], tiles, made.keys) for n in parts[0]}


def _joined(name: str, values: list[Tensor], tiles: list[Tile], keys: int) -> Tensor:
    if name.startswith("#"):
        return torch.stack(values).sum()
    if name in KINDS and KINDS[name].adds:
        padded = [torch.nn.functional.pad(x, (t.low, keys - t.high)) for x, t in zip(values, tiles, strict=True)]
        return torch.stack(padded).sum(0) if len(padded) <= 64 else _sum(padded)
    return torch.cat(values, 2) if len(values) > 1 else values[0]


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
        found["z"] = gated(made, tile, w.p @ tile.v[:, :, tile.low : tile.high].to(w.p.dtype))
    for s in made.stats:
        found |= known(STATS, s.kind, "statistic")(s, made, tile, w)
    return found


ABLE = Abilities(
    masks=ANY,
    edits={*EDITS, E.Gate},
    stats=STATS.keys(),
    options={"softcap", "bias", "sinks", "rows", "no v", "width", "places"},
    gradients=ANY,
    dtypes=FLOATS,
    devices=ANY,
)
