"""Grids of coloured squares, the pictures of the planted ViT and LVLM, and the filters that read them without error.

A picture is 32 x 32 pixels, 16 squares of 8 x 8, one a patch. A colour sets each channel to 0 or 102; a mark lightens
the four pixels in the middle of a square by 102 in all channels. So the mean of a patch's rim says the colour, and the
middle minus the rim says the mark, both linear and exact.
Limits: four colours, flat squares; other pictures are read as whatever their rims and middles happen to be.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interp.planted.answers import Picture

SIDE, PATCH, GRID = 32, 8, 4
LEVEL = 102
COLORS: dict[str, tuple[int, int, int]] = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}


def draw(picture: Picture) -> Image.Image:
    """The picture, RGB."""
    canvas = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    for index, color in enumerate(picture.squares):
        top, left = PATCH * (index // GRID), PATCH * (index % GRID)
        canvas[top : top + PATCH, left : left + PATCH] = LEVEL * np.array(COLORS[color])
        if index == picture.marked:
            canvas[top + 3 : top + 5, left + 3 : left + 5] += LEVEL
    return Image.fromarray(canvas)


def _rim() -> Tensor:
    rim = torch.ones(PATCH, PATCH)
    rim[1:-1, 1:-1] = 0
    return rim / rim.sum()


def _middle() -> Tensor:
    middle = torch.zeros(PATCH, PATCH)
    middle[3:5, 3:5] = 0.25
    return middle


def filters() -> Tensor:
    """[4, 3, 8, 8]: red, green, blue (0 or 1 each) and the mark (0 or 1) of a patch with pixels in 0..1."""
    out = torch.zeros(4, 3, PATCH, PATCH)
    for channel in range(3):
        out[channel, channel] = _rim() * 255 / LEVEL
    out[3] = ((_middle() - _rim()) * 255 / LEVEL / 3).expand(3, PATCH, PATCH)
    return out


def color_readout(scale: float) -> Tensor:
    """[4, color]: from red, green, blue and a constant 1 to logits: 3 x scale for the right one, at most 1 x else."""
    code = 2 * torch.tensor(list(COLORS.values()), dtype=torch.float32).T - 1
    return scale * torch.cat([2 * code, -code.sum(0, keepdim=True)])
