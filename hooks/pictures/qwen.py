"""Qwen-VL: grids of merged patches, sizes in the arguments; the vision tower holds all pictures in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.asked import Ask, Picture, is_image, placeholders
from interp.hooks.pictures.grids import WHOLE, Block, View, grid, merged, windows
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, deal, register


def _qwen(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    return _thw(config, kwargs, rows, "image_grid_thw")


def _qwen_video(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    return _thw(config, kwargs, rows, "video_grid_thw")


def _thw(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text], name: str) -> list[list[Grids]]:
    merge, sizes = config.vision_config.spatial_merge_size, kwargs.get(name, torch.empty(0, 3)).long().tolist()
    blocks = ([grid((t, h // merge, w // merge), view=View(area=WHOLE))] for t, h, w in sizes)
    return deal(blocks, rows, f"{name} {sizes} merged by {merge}")


def _qwen_vision(config: Any, kwargs: Mapping[str, Tensor]) -> list[Grids]:
    names = [name for name in ("image_grid_thw", "video_grid_thw") if name in kwargs]
    if len(names) != 1:
        raise InputsError(f"the vision tower's positions need image_grid_thw or video_grid_thw alone, got {names}")
    return [[_qwen_patches(config, (t, h, w))] for t, h, w in kwargs[names[0]].long().tolist()]


def _qwen_patches(config: Any, shape: tuple[int, int, int]) -> Block:
    merge = config.spatial_merge_size
    cells = merged(shape, merge)
    if config.model_type == "qwen2_5_vl_vision":
        window = config.window_size // merge // config.patch_size
        order = windows((shape[0], shape[1] // merge, shape[2] // merge), window)
        cells = cells.view(-1, merge * merge, 3)[order].reshape(-1, 3)
    return Block(shape, cells, {}, View(area=WHOLE))


def _rows(config: Any, kwargs: Mapping[str, Tensor]) -> list[list[Grids]]:
    return [_qwen_vision(config, kwargs)]


def _example(ask: Ask) -> Picture:
    """An oblong grid of 2 x 3 merged cells, one frame."""
    vision = ask.config.vision_config
    merge = vision.spatial_merge_size
    rows, columns = 2 * merge, 3 * merge
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tensors = {
        "pixel_values": ask.noise(ask.batch * rows * columns, values),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * ask.batch),
    }
    ids = [ask.config.vision_start_token_id, *placeholders(ask, 6), ask.config.vision_end_token_id]
    return Picture(ids, tensors, extra=lambda ask, ids, mask: {"mm_token_type_ids": is_image(ask, ids)})


register(
    VisionLanguage(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        images=_qwen,
        videos=_qwen_video,
        example=_example,
        towers=("qwen",),
        rows=_rows,
    )
)
register(VisionLanguage(("qwen3_vl_moe",), images=_qwen, videos=_qwen_video))
