"""Sizes of made-up inputs, as a config or one inside it says them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.hooks.pictures.asked import Ask, sides

SIDE = 64
"""Of a picture where no config says one."""


@dataclass(frozen=True)
class Cut:
    """How a picture is cut before a model sees it: 2 x 3 merged cells."""

    batch: int
    rows: int
    columns: int
    side: int
    channels: int
    frames: int

    @property
    def cells(self) -> int:
        """Patches of a picture."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.frames * self.side**2

    def sizes(self, *, three: bool) -> Tensor:
        """Rows and columns of each picture, with its one frame before them if asked."""
        return torch.tensor([[1, self.rows, self.columns] if three else [self.rows, self.columns]] * self.batch)


def cut_of(ask: Ask) -> Cut:
    """The cut that the config's vision side takes."""
    vision = next((c for c in with_inner(ask.config) if hasattr(c, "spatial_merge_size")), None)
    vision = vision or next((c for c in with_inner(ask.config) if getattr(c, "patch_size", None)), ask.config)
    merge = number(vision, "spatial_merge_size", otherwise=2)
    side = sides(getattr(vision, "patch_size", None) or 8)[0]
    channels = number(vision, "in_channels", "num_channels", otherwise=3)
    return Cut(ask.batch, 2 * merge, 3 * merge, side, channels, number(vision, "temporal_patch_size", otherwise=1))


def pictures(ask: Ask) -> Tensor:
    """Noise [batch, channel, height, width] of the size that the config or one inside it says."""
    seeing = next((c for c in with_inner(ask.config) if getattr(c, "image_size", None)), None)
    size = number(ask.config, "max_img_size", otherwise=SIDE) if seeing is None else seeing.image_size
    size = (size["height"], size["width"]) if isinstance(size, dict) else size
    channels = number(ask.config if seeing is None else seeing, "num_channels", otherwise=3)
    return ask.noise(ask.batch, channels, *sides(size))


def with_inner(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for value in list(getattr(config, "__dict__", {}).values()):
        if hasattr(value, "model_type"):
            yield from with_inner(value)


def number(config: Any, *names: str, otherwise: int) -> int:
    """A number that a config or one inside it says under one of these names."""
    for one in with_inner(config):
        for name in names:
            if isinstance(found := getattr(one, name, None), int) and found > 0:
                return found
    return otherwise
