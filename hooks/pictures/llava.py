"""LLaVA: every picture is one grid of a ViT's patches, with or without its class token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interp.hooks.pictures.asked import Ask, Picture, cells, pixels_for, placeholders
from interp.hooks.pictures.grids import Block, picture
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, each, register


def _llava(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    return each(selected(config, kwargs.get("pixel_values")), kwargs.get("pixel_values"), rows)


def selected(config: Any, pixels: Tensor | None) -> Block:
    block = picture(config.vision_config, pixels)
    return block.drop_first() if config.vision_feature_select_strategy == "default" else block


def view_cells(config: Any) -> int:
    """Features of one view: "default" drops the first, which is the class token where the tower has one."""
    has_class = config.vision_config.model_type == "clip_vision_model"
    return cells(config.vision_config) + has_class - (config.vision_feature_select_strategy == "default")


def _example(ask: Ask) -> Picture:
    pixels = pixels_for(ask, ask.config.vision_config, ask.batch)
    return Picture(placeholders(ask, view_cells(ask.config)), {"pixel_values": pixels})


register(VisionLanguage(("llava",), images=_llava, example=_example))
register(VisionLanguage(("vipllava",), images=_llava))
