"""Pictures with the cells of a tower's tokens drawn on them, where the model's own labels say that they are.

Cells come from `Roles`: of a picture in tiles (InternVL, Idefics3, Mllama, LLaVA-NeXT) those that are next to each
other are one figure with the borders between its tiles, and views that overlap (a thumbnail, a base view) are figures
of their own; of a video every frame is one. A figure is cut to what its cells cover: what a processor cropped away is
not in it, and cells of padding have no place. Where no picture is given it is read off the model's pixels, tiles as
they are. Limits: pixels in another order than pictures have (Qwen's patches) and tiles with padding are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.inputs.inputs import Inputs
from interp.hooks.pictures.grids import WHOLE, Area, View

if TYPE_CHECKING:
    from interp.model import Model

NEAR = 1e-6


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in the order they were given (PIL), of a video a list of its frames."""

    given: Sequence[Any] = ()
    covered: bool = False
    """They are what the tower read, so that its patches cover them whole."""


@dataclass(frozen=True, eq=False)
class Facet:
    """One grid of a row (one frame of it), and what it covers of the picture in fractions."""

    tile: int
    frame: int
    shape: tuple[int, int]
    area: Area

    def over(self, other: Facet) -> bool:
        """Whether they cover the same place."""
        a, b = self.area, other.area
        return all(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) > NEAR for i in (0, 1))


def images(
    own: Inputs, row: int, example: int, pictures: Pictures, *, places: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """Figures of one row; `places` says which of the example's tokens a column is (its real ones in order)."""
    if places is None:
        places = {column: n for n, column in enumerate(own.valid[row].nonzero().flatten().tolist())}
    found = []
    for number in dict.fromkeys(view.picture for view in own.roles.views[row]):
        if number >= len(pictures.given):
            continue
        given = pictures.given[number]
        figures = _figures(_parts(own, row, number, pictures))
        for n, parts in enumerate(figures):
            picture = _frame(given, parts[0].frame, own.roles.grids[row][parts[0].tile][0])
            if picture is None:
                continue
            name = f"picture {number}" + (f", part {n}" if len(figures) > 1 else "")
            drawn = _drawn(parts, picture, _cells(own, row, parts, places))
            found.append({"name": name, "example": example, **drawn})
    return found


def _frame(given: Any, frame: int, frames: int) -> Any:
    """The picture that a frame of the grid shows; of a video the first of those that it is made of."""
    if isinstance(given, (list, tuple)):
        return given[frame * len(given) // frames]
    return given if frames == 1 else None


def _parts(own: Inputs, row: int, number: int, pictures: Pictures) -> list[Facet]:
    labels, found, given = own.roles, [], pictures.given[number]
    size = _size(given[0] if isinstance(given, (list, tuple)) else given)
    for tile, (view, (frames, rows, columns)) in enumerate(zip(labels.views[row], labels.grids[row], strict=True)):
        if view.picture != number or not view.known or not rows or not columns:
            continue
        whole = pictures.covered or (view.by_fit and labels.fit is None)
        area = WHOLE if whole else view.fractions(labels.sizes[number] if labels.sizes else size, labels.fit)
        found += [Facet(tile, frame, (rows, columns), area) for frame in range(frames)]
    return found


def _size(picture: Any) -> tuple[int, int]:
    return picture.height, picture.width


def _figures(parts: Sequence[Facet]) -> list[list[Facet]]:
    """Parts that are next to each other and are alike, in the order of the tokens."""
    found: list[list[Facet]] = []
    for part in parts:
        fits = (f for f in found if f[0].shape == part.shape and not any(part.over(other) for other in f))
        home = next((f for f in fits if part.frame == f[0].frame), None)
        if home is None:
            found.append([part])
        else:
            home.append(part)
    return found


def _cells(own: Inputs, row: int, parts: Sequence[Facet], places: Mapping[int, int]) -> dict[tuple[int, int], int]:
    """Which token is at (row, column) of the figure."""
    labels, found = own.roles, {}
    lefts, tops = _starts(parts, 0), _starts(parts, 1)
    for part in parts:
        down, across = _nearest(tops, part.area[1]), _nearest(lefts, part.area[0])
        mine = labels.patch[row] & (labels.tile[row] == part.tile) & (labels.frame[row] == part.frame)
        for column in mine.nonzero().flatten().tolist():
            if column in places:
                at = (int(labels.row[row, column]), int(labels.col[row, column]))
                found[down * part.shape[0] + at[0], across * part.shape[1] + at[1]] = places[column]
    return found


def _starts(parts: Sequence[Facet], axis: int) -> list[float]:
    """Where tiles start, each place once."""
    found: list[float] = []
    for start in sorted(part.area[axis] for part in parts):
        if not found or start - found[-1] > NEAR:
            found.append(start)
    return found


def _nearest(starts: Sequence[float], value: float) -> int:
    return min(range(len(starts)), key=lambda n: abs(starts[n] - value))


def _drawn(parts: Sequence[Facet], picture: Any, cells: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """The picture cut to its cells, with the lines between them and those between tiles, in its pixels."""
    lines, borders = [], []
    for axis, side in ((0, picture.width), (1, picture.height)):
        starts, count = _starts(parts, axis), parts[0].shape[1 - axis]
        ends = [next(p.area[axis + 2] for p in parts if abs(p.area[axis] - start) <= NEAR) for start in starts]
        whole = [a + (b - a) * n / count for a, b in zip(starts, ends, strict=True) for n in range(count)]
        edges = [min(max(edge * side, 0.0), float(side)) for edge in (*whole, ends[-1])]
        lines.append(edges)
        borders.append([edge for edge in edges[count:-1:count] if 0 < edge < side])
    (left, right), (top, bottom) = ((int(edges[0]), round(edges[-1])) for edges in lines)
    across, down, between, below = (
        [round(edge - first, 3) for edge in edges]
        for edges, first in zip((*lines, *borders), (left, top, left, top), strict=True)
    )
    shape = (len(down) - 1, len(across) - 1)
    places = [
        cells.get((r, c)) if down[r + 1] > down[r] and across[c + 1] > across[c] else None
        for r in range(shape[0])
        for c in range(shape[1])
    ]
    return {
        "png": picture.crop((left, top, right, bottom)), "grid": list(shape), "positions": places,
        "across": across, "down": down, "borders": [between, below],
    }  # fmt: skip


def pixels(model: Model, x: Inputs) -> Pictures:
    """The pictures as the model was given them, where they are plain [picture or tile, 3, row, column] and how they
    were scaled is known; tiles are laid where they were cut out, so that what is drawn is what the model read."""
    given = x.kwargs.get("pixel_values")
    how = getattr(model.processor, "image_processor", model.processor)
    mean, std = (getattr(how, name, None) for name in ("image_mean", "image_std"))
    if not isinstance(given, Tensor) or given.ndim not in (4, 5) or given.shape[-3] != 3 or not (mean and std):
        return Pictures()
    views = [view for some in x.roles.views for view in some]
    several = len({view.picture for view in views}) != len(views)
    if given.shape[:-3].numel() != len(views) if several else given.ndim != 4 or len(views) not in (0, len(given)):
        return Pictures()
    wide = (3, 1, 1)
    plain = given.detach().cpu().float().flatten(0, -4) * torch.tensor(std).view(wide) + torch.tensor(mean).view(wide)
    whole = [_image(one) for one in (plain.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)]
    return _stitched(x, whole, views) if several else Pictures(whole, covered=True)


def _image(pixels: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(pixels.numpy())


def _stitched(x: Inputs, tiles: Sequence[Any], views: Sequence[View]) -> Pictures:
    """Each picture put together again from its tiles, a view of the whole of it only where it has no others; none
    where a tile's place is not known or a part of it is padding."""
    from PIL import Image

    if any(not view.known or view.by_fit or view.side is not None for view in views):
        return Pictures()
    made = []
    for number in sorted({view.picture for view in views}):
        size = x.roles.sizes[number] if x.roles.sizes else (1, 1)
        mine = [(view.fractions(size, x.roles.fit), tiles[n]) for n, view in enumerate(views) if view.picture == number]
        cut = [part for part in mine if part[0] != WHOLE] or mine[:1]
        (left, top, right, bottom), first = cut[0]
        side = (round(first.width / (right - left)), round(first.height / (bottom - top)))
        canvas = Image.new("RGB", side)
        for area, tile in cut:
            corners = [round(edge * side[n % 2]) for n, edge in enumerate(area)]
            canvas.paste(tile.resize((corners[2] - corners[0], corners[3] - corners[1])), (corners[0], corners[1]))
        made.append(canvas)
    return Pictures(made)
