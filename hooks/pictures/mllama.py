"""Mllama: one token a picture in the text; its vision tower holds all tiles of a picture in one row, the picture in the
upper left corner of its tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.asked import Ask, Picture, is_image, pixels_for, placeholders
from interp.hooks.pictures.grids import View, grid, patch_grid, tokens
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, register


def _mllama(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    return [[[tokens(1)] for _ in row.at] for row in rows]


def _mllama_vision(config: Any, kwargs: Mapping[str, Tensor]) -> list[list[Grids]]:
    """All tiles of a picture in one row, each with its CLS token first and filled up to a multiple of eight."""
    pixels = kwargs["pixel_values"]
    tiles = pixels.shape[2]
    if "aspect_ratio_mask" not in kwargs:
        raise InputsError(f"which of the {tiles} tiles of a picture are real is not known without aspect_ratio_mask")
    real = kwargs["aspect_ratio_mask"].reshape(-1, tiles).bool().tolist()
    ids = kwargs["aspect_ratio_ids"].reshape(-1).tolist() if "aspect_ratio_ids" in kwargs else [None] * len(real)
    one = grid((1, *patch_grid(config, pixels)), lead=("cls",))
    fill, none = tokens(-len(one) % 8, "filler"), tokens(len(one), "filler")
    shown = [_tiles(config, number, row, int(pixels.shape[-1])) for number, row in zip(ids, real, strict=True)]
    tile = [[none if view is None else replace(one, view=view) for view in row] for row in shown]
    return [[[block for each in row for block in (each, fill) if len(block)]] for row in tile]


def _tiles(config: Any, ratio: int | None, real: Sequence[bool], side: int) -> list[View | None]:
    """What each tile shows, None where it only fills up.

    `ratio` counts the arrangements (rows, columns) from 1 and is 0 for a picture that only fills up the batch. Where it
    is not given, or has other than the real tiles, where they are is not known.
    """
    if ratio == 0:
        return [None] * len(real)
    rows, columns = (0, 0) if ratio is None else config.supported_aspect_ratios[ratio - 1]
    known = rows * columns == sum(real)
    views = [View(tile, (rows, columns), side=side) if known else View(known=False) for tile in range(len(real))]
    return [view if here else None for view, here in zip(views, real, strict=True)]


def _example(ask: Ask) -> Picture:
    """One token; rows differ in how many tiles their image has, and words before the image do not see it."""
    vision = ask.config.vision_config
    shapes = [vision.supported_aspect_ratios[row % 2 % len(vision.supported_aspect_ratios)] for row in range(ask.batch)]
    tiles = torch.tensor([rows * columns for rows, columns in shapes])
    present = (torch.arange(vision.max_num_tiles) < tiles[:, None])[:, None]
    ratio = torch.tensor([[1 + vision.supported_aspect_ratios.index(shape)] for shape in shapes])
    pixels = pixels_for(ask, vision, ask.batch, 1, vision.max_num_tiles) * present[..., None, None, None]
    tensors = {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": present.long()}

    def crossing(ask: Ask, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        after = is_image(ask, ids).cumsum(-1).clamp(max=1) * mask
        return {"cross_attention_mask": after[:, :, None, None] * present.long()[:, None]}

    return Picture(placeholders(ask, 1), tensors, extra=crossing)


register(
    VisionLanguage(
        ("mllama",), images=_mllama, example=_example, nested=True, towers=("mllama_vision_model",), rows=_mllama_vision
    )
)
