"""Attention rolled out over the layers of a tower that reads pictures: where what arrives at a token came from.

Attention rollout (Abnar & Zuidema, "Quantifying Attention Flow in Transformers", 2020, arXiv 2005.00928): of each layer
A_l = (W_l + I) / 2, W_l the mean of the patterns of its heads and I what the residual stream carries along; the rollout
is A_L ... A_2 A_1, whose rows sum to 1. It knows no head's values and no MLP, so it is a picture of what could flow.
Cost: none where the page keeps every row of the patterns; else one forward pass, with the patterns of the tower in
memory. Limits: self-attention towers over pictures, none where the patterns would take more than `MEMORY` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.explorer.looks import pattern_of
from interp.hooks.anatomy.towers import Tower
from interp.hooks.inputs.inputs import Inputs

if TYPE_CHECKING:
    from interp.model import Model

MEMORY = 800_000_000


def rollouts(
    model: Model, x: Inputs, tower: Tower, own: Inputs, blocks: Sequence[dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """For each block of patterns (of row n) the rollout with the same query rows; nothing for texts."""
    layers = [layer for layer in tower.layers if layer.kind == "self"]
    heads = [layer.heads for layer in layers]
    if own.ids is not None or not bool(own.roles.patch.any()):
        return [None] * len(blocks)
    if all(block["weights"].shape[1] == block["weights"].shape[2] for block in blocks):
        return [_flow(block, block["weights"].split(heads)) for block in blocks]
    if sum(heads) * own.batch * own.length**2 * 4 > MEMORY:
        return [None] * len(blocks)
    name = f"{pattern_of(model, tower)}.pattern"
    tape = model.run(x, record=name, store="cpu")
    patterns = [tape[site] for site in model.sites(name)]
    found: list[dict[str, Any] | None] = []
    for n, block in enumerate(blocks):
        columns = own.valid[n].nonzero().flatten().cpu()
        found.append(_flow(block, [layer[n][:, columns][:, :, columns] for layer in patterns]))
    return found


def _flow(block: Mapping[str, Any], patterns: Sequence[Tensor]) -> dict[str, Any]:
    whole = rolled(patterns)
    rows = block.get("rows") or list(range(len(whole)))
    return {"rows": rows, "weights": whole[rows].clamp(0, 1).float()}


def rolled(patterns: Sequence[Tensor]) -> Tensor:
    """[query, key] from the pattern [head, query, key] of each layer, the first layer first."""
    whole = torch.eye(patterns[0].shape[-1], dtype=torch.float64)
    for pattern in patterns:
        mean = pattern.double().mean(0)
        whole = (mean + torch.eye(len(mean), dtype=torch.float64)) / 2 @ whole
    return whole
