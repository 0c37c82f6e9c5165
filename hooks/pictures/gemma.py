"""PaliGemma, whose image opens the row, and Gemma-3, whose projector pools squares of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.hooks.pictures.asked import Ask, Picture, cells, is_image, pixels_for, placeholders
from interp.hooks.pictures.grids import WHOLE, View, grid, patch_grid
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, each, register


def _siglip(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    pixels = kwargs.get("pixel_values")
    return each(grid((1, *patch_grid(config.vision_config, pixels)), view=View(area=WHOLE)), pixels, rows)


def _gemma3(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    patches = config.vision_config.image_size // config.vision_config.patch_size
    kernel = patches // math.isqrt(config.mm_tokens_per_image)  # the projector pools a square by a square kernel
    side = patches // kernel
    return each(grid((1, side, side), view=View(area=WHOLE)), kwargs.get("pixel_values"), rows)


def _opening(ask: Ask) -> Picture:
    """The image opens the row, and the whole row is prefix (type 0), seen both ways."""
    vision = ask.config.vision_config
    tensors = {"pixel_values": pixels_for(ask, vision, ask.batch)}
    ids = placeholders(ask, cells(vision))
    return Picture(ids, tensors, first=True, extra=lambda ask, ids, mask: {"token_type_ids": torch.zeros_like(ids)})


def _between(ask: Ask) -> Picture:
    config = ask.config
    ids = [config.boi_token_id, *placeholders(ask, config.mm_tokens_per_image), config.eoi_token_id]
    tensors = {"pixel_values": pixels_for(ask, config.vision_config, ask.batch)}
    return Picture(ids, tensors, extra=lambda ask, ids, mask: {"token_type_ids": is_image(ask, ids)})


register(
    VisionLanguage(
        ("paligemma",), images=_siglip, example=_opening, nested=True, implicit=True, always=True, first_position=1,
        fills={"token_type_ids": 1},
    )
)  # fmt: skip
register(VisionLanguage(("gemma3",), images=_gemma3, example=_between, nested=True))
