"""Effects of image tokens laid out as the picture they came from."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs


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
    """[site, patch row, patch column] of one example; nan where no token stands. Positions must be an axis."""
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


def plot_over_image(effects: OverPositions, inputs: Inputs, picture: Any = None, *, site: int = 0, **which: int) -> Any:
    """A heat map of one site's effects by patch (plotly), over the picture (PIL or [row, column, 3]) if it is given."""
    return heat_over(over_image(effects, inputs, **which)[site], picture, title="effect")


def heat_over(grid: Tensor, picture: Any = None, *, title: str) -> Any:
    """Numbers of cells [row, column] as a heat map (plotly), over the picture if it is given."""
    import plotly.graph_objects as go

    bound = float(grid.nan_to_num().abs().max()) or 1.0
    figure = go.Figure()
    if picture is not None:
        import numpy

        pixels = numpy.asarray(picture)
        dy, dx = (patches / long for patches, long in zip(grid.shape, pixels.shape[:2], strict=True))
        figure.add_trace(go.Image(z=pixels, dx=dx, dy=dy, x0=(dx - 1) / 2, y0=(dy - 1) / 2))
    figure.add_trace(go.Heatmap(z=grid.numpy(), zmin=-bound, zmax=bound, colorscale="RdBu", colorbar_title=title,
                                opacity=1.0 if picture is None else 0.6))  # fmt: skip
    return figure.update_layout(yaxis_autorange="reversed", yaxis_scaleanchor="x")
