"""Statistics of a pattern that is given as numbers: of attention that no implementation here computes.

What a row sees is what the call's mask lets it see and what it has weight on; rows to which the mask shows nothing, as
padding, give 0. The log-sum-exp and the learned sink's share are those of scores, which a pattern alone does not have.
Cost: that of the pattern, which is in memory already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.kernels.cpu.tile_stats import STATS
from interp.kernels.cpu.tile_weights import Tile, Weights
from interp.kernels.errors import AttentionError, known
from interp.kernels.request import Found, Request
from interp.kernels.stats import ratio

OF_SCORES = ("lse", "sink")


def statistics(weights: Tensor, made: Request) -> Found:
    """The statistics a request asks for, of weights [batch, head, row, key] for its rows."""
    refused = next((s.name for s in made.stats if s.kind in OF_SCORES), None)
    if refused is not None:
        raise AttentionError(
            f"statistic {refused!r} is one of the scores; a pattern that is given has none: leave it out"
        )
    wanted = (made.batch, made.heads, len(made.rows), made.keys)
    if tuple(weights.shape) != wanted:
        raise AttentionError(f"the pattern of this request is {list(wanted)}; got {list(weights.shape)}")
    device = made.q.device
    tile = Tile(torch.arange(made.heads, device=device), torch.arange(len(made.rows), device=device), 0, made.keys,
                made.q, made.k, None)  # fmt: skip
    shown = made.mask.visible(made.positions, tile.keys(made)).expand(wanted)
    p = weights.to(made.accumulate) * shown.any(-1, keepdim=True)
    none = p.new_full(wanted[:3], torch.nan)
    whole = Weights(p, shown | (p != 0), none, none, None, torch.zeros((), dtype=torch.long, device=device))
    found: Found = {}
    for s in made.stats:
        one = known(STATS, s.kind, "statistic")(s, made, tile, whole)
        if s.kind == "received_mean":
            one = {s.name: ratio(one["received"], one["seen"])}
        found |= one if s.kind == "topk" else {s.name: one[s.name]}
    return found
