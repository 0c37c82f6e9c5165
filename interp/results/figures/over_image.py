"""Effects of image tokens laid out as the picture they came from."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.results.figures.colours import Scale
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap


@runtime_checkable
class OverPositions(Protocol):
    """Numbers of cells that are sites times positions, `interp.patching.Effects` above all."""

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The position axis."""

    @property
    def values(self) -> Tensor:
        """[site and position, example]."""


def over_image(effects: OverPositions, inputs: Inputs, *, row: int = 0, image: int = 0) -> Tensor:
    """[site, patch row, patch column] of one example; nan where there is no token. Positions must be an axis."""
    if effects.positions is None:
        raise InputsError("these effects have no position axis: patch with positions='each'.")
    labels = inputs.roles
    own = labels.patch[row] & (labels.image[row] == image)
    if not bool(own.any()):
        raise InputsError(f"row {row} has no patches of an image {image}.")
    at = own.nonzero().flatten()
    r, c = labels.row[row, at], labels.col[row, at]
    values = effects.values[:, row].view(-1, len(effects.positions))
    grid = values.new_full((len(values), int(r.max()) + 1, int(c.max()) + 1), torch.nan)
    grid[:, r, c] = values[:, at]
    return grid


def figure_over_image(
    effects: OverPositions, inputs: Inputs, picture: Any = None, *, site: int = 0, **which: int
) -> Figure:
    """A map of one site's effects by patch, over the picture (PIL or [row, column, 3]) if it is given."""
    return heat_over(over_image(effects, inputs, **which)[site], picture, title="effect")


def heat_over(grid: Any, picture: Any = None, *, title: str, scale: Scale = "signed") -> Figure:
    """Numbers of cells [row, column] as a map, over the picture if it is given."""
    pixels = None if picture is None else pixels_of(picture)
    return Figure([Heatmap(np.asarray(grid), name=title, scale=scale, picture=pixels, square=True)])


def pixels_of(picture: Any) -> Any:
    """A picture (PIL or [row, column, 3]) in 0 to 255."""
    array = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputsError(f"a picture is a PIL image or [row, column, 3], got the shape {array.shape}.")
    return (
        (array * 255).round().astype(np.uint8)
        if array.dtype.kind == "f" and array.max() <= 1
        else array.astype(np.uint8)
    )
