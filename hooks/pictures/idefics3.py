"""Idefics3 and SmolVLM: tiles with marks between them, then one view of the whole picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.asked import Ask, Picture, cells, pixels_for, placeholders
from interp.hooks.pictures.grids import WHOLE, View, grid, patch_grid
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, register, views_in_text


def _idefics3(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    pixels = kwargs.get("pixel_values")
    patches = patch_grid(config.vision_config, pixels)
    shape = (1, *(side // config.scale_factor for side in patches))
    for index, row in enumerate(rows):
        for start, end in row.runs:
            if end - start != shape[1] * shape[2]:
                raise InputsError(f"row {index}: {end - start} image tokens in a tile, expected {shape[1:]}")
    _check_tiles(pixels, [len(row.runs) for row in rows])
    return [[_split(shape, lines) for lines in tile_lines(row)] for row in rows]


def _check_tiles(pixels: Tensor | None, found: list[int]) -> None:
    if pixels is None or pixels.dim() != 5:
        return
    real = (pixels != 0).flatten(2).any(-1).sum(1).tolist()
    if real != found:
        raise InputsError(f"pixel_values has {real} tiles per row, the text has image tokens for {found}")


def tile_lines(row: Text) -> list[list[int]]:
    """Per picture, how many tiles each line of tiles has; the whole picture comes last, as a line of one.

    The mark `<fake_token_around_image>` opens every tile and closes the last one, so the gap between two tiles says
    what happened: it starts with the mark and has one: same line; two marks: a new picture; else: a new line.
    """
    runs = row.runs
    if not runs:
        return []
    mark, pictures = int(row.ids[runs[-1][1]]), [[1]]
    for (_, start), (end, _) in itertools.pairwise(runs):
        gap = row.ids[start:end].tolist()
        if gap.count(mark) > 1:
            pictures.append([1])
        elif gap[0] == mark:
            pictures[-1][-1] += 1
        else:
            pictures[-1].append(1)
    return pictures


def _split(shape: tuple[int, int, int], lines: list[int]) -> Grids:
    *tiles, last = lines
    if last != 1 or len(set(tiles)) > 1:
        raise InputsError(f"lines of {lines} tiles: expected equal lines and then one view of the whole picture")
    count = (len(tiles), tiles[0]) if tiles else (1, 1)
    views = [View(tile, count) for tile in range(sum(tiles))] + [View(area=WHOLE)]
    return [grid(shape, view=view) for view in views]


def _example(ask: Ask) -> Picture:
    """One tile per row."""
    vision = ask.config.vision_config
    count = cells(vision) // ask.config.scale_factor**2
    return Picture(placeholders(ask, count), {"pixel_values": pixels_for(ask, vision, ask.batch, 1)})


register(
    VisionLanguage(
        ("idefics3", "smolvlm"), images=_idefics3, example=_example, views=views_in_text, marks=True, nested=True
    )
)
