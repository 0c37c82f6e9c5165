"""A map of numbers over a picture: laid on it in colour, and which of its patches have the largest values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.preparing.pictures import picture
from interp.results.figures.colours import LESS, MORE, parts

LIKE = 64
NEAR = 3.0
"""Goferman et al. 2010: how many most similar patches count, and how much distance makes up for likeness."""


def overlay(image: Any, grid: Tensor, *, strength: float = 0.6) -> Any:
    """The picture with positive numbers in orange and negative ones in blue, the largest strongest. A PIL image."""
    from PIL import Image

    base = picture(image)
    share = torch.nan_to_num(grid.float()) / (grid.abs().nan_to_num().max().clamp(min=1e-12))
    wide = Image.fromarray(((share.numpy() + 1) * 127.5).round().astype(np.uint8)).resize(
        base.size, Image.Resampling.BILINEAR
    )
    amount = np.asarray(wide, dtype=np.float32)[..., None] / 127.5 - 1
    amount[np.abs(amount) < 0.01] = 0  # 0 falls between two grey levels
    colour = np.where(amount > 0, np.array(parts(MORE), np.float32), np.array(parts(LESS), np.float32))
    weight = strength * np.abs(amount)
    mixed = np.asarray(base, dtype=np.float32) * (1 - weight) + colour * weight
    return Image.fromarray(mixed.round().astype(np.uint8))


def salient(grid: Tensor) -> Tensor:
    """Context-aware saliency: 1 - exp(-mean distance to the most similar patches), far ones counting as less unlike.

    A patch is its 3 x 3 neighbourhood of the map scaled to 0..1; d = |p - q| / (1 + 3 |place p - place q|), places in
    units of the longer side.
    """
    height, width = grid.shape
    low, high = grid.nan_to_num().min(), grid.nan_to_num().max()
    scaled = (grid.nan_to_num() - low) / (high - low).clamp(min=1e-12)
    around = torch.nn.functional.pad(scaled[None, None], (1, 1, 1, 1), mode="replicate")
    patches = torch.nn.functional.unfold(around, 3)[0].T
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float() / max(height, width)
    unlike = torch.cdist(patches, patches) / (1 + NEAR * torch.cdist(places, places))
    unlike.fill_diagonal_(torch.inf)
    nearest = unlike.topk(min(LIKE, len(unlike) - 1), largest=False).values
    return (1 - torch.exp(-nearest.mean(1))).reshape(height, width)
