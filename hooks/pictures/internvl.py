"""InternVL: tiles left to right, top to bottom, then a thumbnail, read from the runs of image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.asked import Ask, Picture, cells, pixels_for, placeholders
from interp.hooks.pictures.grids import WHOLE, View, grid, patch_grid
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, register, views_in_text


def _internvl(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    pixels = kwargs.get("pixel_values")
    patches = patch_grid(config.vision_config, pixels)
    shape = (1, int(patches[0] * config.downsample_ratio), int(patches[1] * config.downsample_ratio))
    pictures = [[_tiled(shape, end - start) for start, end in row.runs] for row in rows]
    found = sum(len(tiles) for row in pictures for tiles in row)
    if pixels is not None and found != len(pixels):
        raise InputsError(f"pixel_values has {len(pixels)} tiles, the text has image tokens for {found}")
    return pictures


def _tiled(shape: tuple[int, int, int], count: int) -> Grids:
    """Tiles left to right, top to bottom, then a thumbnail of everything; a single tile is the whole picture."""
    tiles, rest = divmod(count, shape[1] * shape[2])
    if rest:
        raise InputsError(f"a run of {count} image tokens, expected a multiple of {shape[1] * shape[2]} per tile")
    views = [View(tile, tiles - 1) for tile in range(tiles - 1)] + [View(area=WHOLE)]
    return [grid(shape, view=view) for view in views]


def _example(ask: Ask) -> Picture:
    count = int(cells(ask.config.vision_config) * ask.config.downsample_ratio**2)
    return Picture(placeholders(ask, count), {"pixel_values": pixels_for(ask, ask.config.vision_config, ask.batch)})


register(VisionLanguage(("internvl",), images=_internvl, example=_example, views=views_in_text))
