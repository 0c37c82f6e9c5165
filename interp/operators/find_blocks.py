"""Blocks of keys that each head reads most, found once and used from then on.

SparseD (arXiv 2509.24014), as the authors' code computes it: from the head's own weights on one text, the mean over
each block of rows and block of keys; for each block of rows the int(blocks * keep) + 1 largest blocks of keys are kept,
head by head, and later steps of denoising attend to these alone. In a tower that hides later keys only what is seen
counts, which is ours; the code chooses blocks of the answer apart from those of the prompt, which `apart` does: from
that position on, equally many of the rest. The examples of a batch are averaged: one table a head.
Cost: one forward pass, and the heads' patterns in blocks of rows. Limits: a table is for texts of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, heads_at, spelled_together
from interp.hooks.sites import Site
from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import Blocks
from interp.operators.common.operator import visible
from interp.operators.visiting import one_call_each, places_of
from interp.operators.windows.masked import Masked

if TYPE_CHECKING:
    from interp.model import Model


def find_blocks(
    model: Model, data: Any, *, sites: str = "L*.H*", size: int = 32, keep: float = 0.3, apart: int | None = None
) -> list[Masked]:
    """One operator a layer, with a table for each of its heads: blocks of `size` tokens, the share `keep` of them for
    each block of rows and one more."""
    if size < 1 or not 0 <= keep <= 1:
        raise InputsError(f"size is at least 1 and keep in [0, 1], got {size} and {keep}.")
    x = model.inputs(data)
    places = places_of(model, sites)
    parts = one_call_each(model, x, places)
    found = []
    for site in places:
        with torch.no_grad():
            table = _table(parts[str(site)], size, keep, apart)
        found.append(Masked(_named(model, site), Blocks(table, size)))
    return found


def _named(model: Model, site: Site) -> str:
    layers = by_layer(heads_at(site, model.anatomy.layer(site).heads_of(site)))
    (layer, heads), = layers.items()  # fmt: skip
    return spelled_together(layer, heads)


def _table(part: Part, size: int, keep: float, apart: int | None) -> Tensor:
    """Bool [head, block of rows, block of keys]"""
    queries, keys = part.q.shape[2], part.k.shape[2]
    if queries != keys:
        raise InputsError(f"blocks need self-attention, and here are {queries} queries and {keys} keys.")
    means, seen = [], []
    for rows in torch.arange(queries, device=part.q.device).split(size):
        p = part.softmax(part.scores(rows)).mean((0, 2))
        pad = (0, -keys % size)
        means.append(torch.nn.functional.pad(p, pad).unflatten(-1, (-1, size)).mean(-1))
        shown = visible(part, rows).any(2).any(0).expand(len(part.heads), -1)
        seen.append(torch.nn.functional.pad(shown, pad, value=False).unflatten(-1, (-1, size)).any(-1))
    mean, shown = torch.stack(means, 1), torch.stack(seen, 1)
    groups: Sequence[slice] = [slice(None)]
    if apart is not None:
        cut = -(-apart // size)
        groups = [slice(0, cut), slice(cut, None)]
    table = torch.zeros_like(shown)
    for group in groups:
        part_of = mean[..., group].masked_fill(~shown[..., group], -torch.inf)
        count = min(part_of.shape[-1], int(part_of.shape[-1] * keep) + 1)
        if count:
            table[..., group] = torch.zeros_like(shown[..., group]).scatter(-1, part_of.topk(count).indices, True)
    return table & shown
