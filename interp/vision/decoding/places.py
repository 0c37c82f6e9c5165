"""Numbers of a vision tower's patches as numbers of the text's image tokens, by where both are in the picture.

A token's number is the mean over the patches whose middle is in its cell, of the tower's view that shows the same part
of the picture (a tile, the whole), or, where tiles were stitched together (LLaVA-NeXT), of the tiles. So merged patches
(Qwen-VL, pixel shuffle, pooling) and tiles need no grid of a known size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.pictures.grids import Area
from interp.vision.decoding.without import placed_on_a_grid

NEAR = 1e-4


def token_numbers(
    x: Inputs, own: Inputs, numbers: Float[Tensor, "tile slot"], *, what: str
) -> Float[Tensor, "example position"]:
    """NaN for tokens that are no cell."""
    if x.roles.sizes is None:
        raise InputsError(f"{what}: the pictures' sizes are not known: prepare the inputs with m.prepare(images=...).")
    placed_on_a_grid(x, x.roles.where("image"), what=what)
    out = torch.full(x.valid.shape, float("nan"), dtype=torch.float64)
    for row, views in enumerate(x.roles.views):
        for tile in range(len(views)):
            here = ((x.roles.tile[row] == tile) & x.roles.patch[row]).cpu().nonzero().flatten()
            places, values = _patches(x, own, numbers, (row, tile))
            if len(here):
                out[row, here] = _means(_cells(x, row, tile, here), places, values, what)
    return out


def _area(inputs: Inputs, row: int, tile: int) -> Area:
    view, sizes = inputs.roles.views[row][tile], inputs.roles.sizes
    assert sizes is not None
    return view.fractions(sizes[view.picture], inputs.roles.fit)


def _cells(inputs: Inputs, row: int, tile: int, here: Tensor) -> Float[Tensor, "token 4"]:
    """Boxes in fractions of the picture, not clipped to it."""
    left, top, right, bottom = _area(inputs, row, tile)
    _, rows, columns = inputs.roles.grids[row][tile]
    y, x = (getattr(inputs.roles, name)[row].cpu()[here].double() for name in ("row", "col"))
    wide, high = (right - left) / columns, (bottom - top) / rows
    return torch.stack([left + x * wide, top + y * high, left + (x + 1) * wide, top + (y + 1) * high], -1)


def _patches(x: Inputs, own: Inputs, numbers: Tensor, at: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Middles (x, y) and numbers of the patches that a token grid was made of."""
    places, values = [torch.empty(0, 2)], [torch.empty(0)]
    for row, tile in _made_of(x, own, at):
        here = ((own.roles.tile[row] == tile) & own.roles.patch[row]).cpu().nonzero().flatten()
        boxes = _cells(own, row, tile, here)
        places.append((boxes[:, :2] + boxes[:, 2:]) / 2)
        values.append(numbers[row, here])
    return torch.cat([one.double() for one in places]), torch.cat([one.double() for one in values])


def _made_of(x: Inputs, own: Inputs, at: tuple[int, int]) -> list[tuple[int, int]]:
    """The tower's views that a view of the text was made of: that of the same area, and where two of the text have one
    area (LLaVA-NeXT's base view, and tiles without padding) the first its first; else those that no other was made of.
    """
    picture = x.roles.views[at[0]][at[1]].picture
    left = [(row, tile) for row, views in enumerate(own.roles.views) for tile, view in enumerate(views)
            if view.picture == picture]  # fmt: skip
    mine = [(at[0], tile) for tile, view in enumerate(x.roles.views[at[0]]) if view.picture == picture]
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for one in mine:
        area, alike = _area(x, *one), sum(_near(_area(x, *one), _area(x, *other)) for other in mine)
        same = [source for source in left if _near(_area(own, *source), area)]
        found[one] = same if alike == 1 else same[:1]
        left = [source for source in left if source not in found[one]]
    return found[at] or left


def _near(one: Area, other: Area) -> bool:
    return all(abs(a - b) < NEAR for a, b in zip(one, other, strict=True))


def _means(cells: Tensor, places: Tensor, values: Tensor, what: str) -> Float[Tensor, " token"]:
    inside = (places[None] >= cells[:, None, :2]).all(-1) & (places[None] < cells[:, None, 2:]).all(-1)
    count = inside.sum(1)
    if not bool(count.all()):
        raise InputsError(
            f"{what}: {int((count == 0).sum())} image tokens have no patch of the vision tower in their cell, so how"
            " patches became tokens is not known in this family."
        )
    return torch.where(inside, values[None], 0.0).sum(1) / count
