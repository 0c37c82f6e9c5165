"""LLaVA-NeXT: a base view, then the tiles of the best resolution stitched together, a newline after each row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.asked import Ask, Picture, pixels_for, placeholders
from interp.hooks.pictures.grids import WHOLE, Area, Block, View, grid
from interp.hooks.pictures.llava import selected, view_cells
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, deal, register


def _llava_next(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    if "image_sizes" not in kwargs:
        raise InputsError(
            "LLaVA-NeXT needs image_sizes (the processor returns it), which says where in the picture its tokens are"
        )
    base = replace(selected(config, kwargs.get("pixel_values")), view=View(area=WHOLE))
    sizes = [(int(height), int(width)) for height, width in kwargs["image_sizes"].tolist()]
    return deal((_anyres(config, base, size) for size in sizes), rows, f"image_sizes {sizes}")


def _anyres(config: Any, base: Block, size: tuple[int, int]) -> Grids:
    """Base view, then the tiles stitched together, freed of padding, a newline after each row."""
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    height, width = best_resolution(size, config.image_grid_pinpoints)
    shape, cut = unpadded((height // tile * (tile // patch), width // tile * (tile // patch)), size)
    start = [cut[i] * patch for i in (0, 1)]
    area = _canvas_area(size, (height, width), start, [start[i] + shape[i] * patch for i in (0, 1)])
    return [base, grid((1, *shape), newline=True, view=View(area=area))]


def best_resolution(size: tuple[int, int], options: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) that keeps most of the picture's pixels and, among those, wastes the fewest."""

    def score(option: Sequence[int]) -> tuple[int, int]:
        scale = min(option[0] / size[0], option[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - option[0] * option[1]

    best = max(options, key=score)
    return int(best[0]), int(best[1])


def unpadded(shape: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is left of a patch grid without the padding of a (height, width) picture, and what is cut before it."""
    (rows, cols), (height, width) = shape, size
    if width / height > cols / rows:
        cut = (rows - int(round(height * (cols / width), 7))) // 2
        return (rows - 2 * cut, cols), (cut, 0)
    cut = (cols - int(round(width * (rows / height), 7))) // 2
    return (rows, cols - 2 * cut), (0, cut)


def _canvas_area(size: tuple[int, int], canvas: tuple[int, int], start: Sequence[int], end: Sequence[int]) -> Area:
    """Fractions of a picture between two (row, column) pixels of the canvas it was fitted into and centred on."""
    scales = [canvas[i] / size[i] for i in (0, 1)]
    short = 0 if scales[0] > scales[1] else 1
    fitted = list(canvas)
    fitted[short] = min(math.ceil(size[short] * scales[1 - short]), canvas[short])
    before = [(canvas[i] - fitted[i]) // 2 for i in (0, 1)]
    (top, left), (bottom, right) = ([(at[i] - before[i]) / fitted[i] for i in (0, 1)] for at in (start, end))
    return left, top, right, bottom


def _tile_views(config: Any, size: tuple[int, int], index: int) -> list[View]:
    side = config.vision_config.image_size
    canvas = best_resolution(size, config.image_grid_pinpoints)
    starts = itertools.product(range(0, canvas[0], side), range(0, canvas[1], side))
    areas = [_canvas_area(size, canvas, (y, x), (y + side, x + side)) for y, x in starts]
    return [View(area=area, picture=index) for area in (WHOLE, *areas)]


def _views(config: Any, kwargs: Mapping[str, Tensor]) -> list[View]:
    sizes = [(int(h), int(w)) for h, w in kwargs["image_sizes"].tolist()]
    return [view for index, size in enumerate(sizes) for view in _tile_views(config, size, index)]


def _example(ask: Ask) -> Picture:
    """The smallest oblong resolution: one whole view, then its tiles row by row, each row closed by a newline."""
    vision = ask.config.vision_config
    points = sorted(ask.config.image_grid_pinpoints, key=lambda point: (point[0] == point[1], point[0] * point[1]))
    height, width = points[0]
    tiles = (height // vision.image_size) * (width // vision.image_size)
    rows, columns = height // vision.patch_size, width // vision.patch_size
    pixels = pixels_for(ask, vision, ask.batch, 1 + tiles)
    sizes = torch.tensor([[height, width]] * ask.batch)
    count = view_cells(ask.config) + rows * (columns + 1)
    return Picture(placeholders(ask, count), {"pixel_values": pixels, "image_sizes": sizes})


register(VisionLanguage(("llava_next",), images=_llava_next, example=_example, views=_views))
