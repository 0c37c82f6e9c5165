"""How much the class token of a vision tower looks at each patch, and at what each image token of the text came from.

Where tokens are the tower's patches one by one (LLaVA) the map is by cell: both say the same picture, frame, row and
column of one grid. Elsewhere it is by place in the picture (`places.py`): a token merged of several patches (InternVL's
pixel shuffle) has their mean, and one of stitched tiles (LLaVA-NeXT) that of the tile's patch which is there; patches
of padding that was cut off have no token. Queries of a resampler or a Q-Former have no place and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks.anatomy.towers import Tower
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.pictures.grids import WHOLE
from interp.vision.decoding.places import token_numbers
from interp.vision.decoding.without import placed_on_a_grid

if TYPE_CHECKING:
    from interp.model import Model


def seeing_tower(model: Model, x: Inputs, *, what: str) -> tuple[Tower, Inputs]:
    """The vision tower and its positions; refused without a class token."""
    tower, own = model.ready().tower("vision", text=what), x.tower("vision")
    if int(own.roles.where("cls").sum(1).min()) != 1:
        raise ModelError(
            f"{what} reads how the class token of the vision tower looks at patches, and this tower has none (SigLIP"
            " and Qwen-VL, for example, have no class token)."
        )
    return tower, own


def layer_of(tower: Tower, index: int) -> int:
    """A layer's number, counted from the end where it is negative."""
    known = [layer.index for layer in tower.layers]
    found = index if index >= 0 else max(known) + 1 + index
    if found not in known:
        raise InputsError(f"the vision tower has layers {known}; got {index}.")
    return found


def class_looks(model: Model, x: Inputs, layer: int, *, split: bool, what: str) -> Float[Tensor, "tile head slot"]:
    """Weights of the class token on every position, head by head, or as one head of full width; 0 off the patches."""
    _, own = seeing_tower(model, x, what=what)
    tape = model.run(x, record=[f"vision.L{layer}.q", f"vision.L{layer}.k"])
    q, k = (tape[f"vision.L{layer}.{one}"].float() for one in ("q", "k"))
    cls, patch = own.roles.where("cls").to(q.device), own.roles.patch.to(q.device)
    q = q[cls]
    k = k.repeat_interleave(q.shape[1] // k.shape[2], 2)
    if not split:
        q, k = q.flatten(1)[:, None], k.flatten(2)[:, :, None]
    scores = torch.einsum("thd,tphd->thp", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1) * patch[:, None]


def token_looks(
    x: Inputs, own: Inputs, looks: Float[Tensor, "tile slot"], *, what: str
) -> Float[Tensor, "example position"]:
    """The looks at patches, brought to the text's image tokens; NaN for tokens without a cell."""
    at = _one_by_one(x, own)
    if at is None:
        placed_on_a_grid(x, x.roles.where("image") & x.valid, what=what)
        return token_numbers(x, own, looks.double().cpu(), what=what)
    out = torch.full((x.valid.numel(),), float("nan"), dtype=torch.float64)
    out[at[at >= 0]] = looks.double().cpu()[at >= 0]
    return out.view(x.valid.shape)


def views_of(x: Inputs) -> Iterator[tuple[int, int, Bool[Tensor, " position"]]]:
    """(row, tile, the cells of one view of a picture) of every view in the text."""
    cells, tiles = (x.roles.patch & x.roles.where("image") & x.valid).cpu(), x.roles.tile.cpu()
    for row in range(x.batch):
        for tile in sorted(set(tiles[row][cells[row]].tolist())):
            yield row, tile, cells[row] & (tiles[row] == tile)


def whole_views(x: Inputs, *, what: str) -> Iterator[tuple[int, Bool[Tensor, " position"]]]:
    """(row, cells) of the view that shows the whole of each picture: its only one, LLaVA-NeXT's base view, InternVL's
    thumbnail."""
    found: dict[tuple[int, int], list[tuple[int, Bool[Tensor, " position"]]]] = {}
    for row, tile, cells in views_of(x):
        found.setdefault((row, int(x.roles.image[row].cpu()[cells][0])), []).append((tile, cells))
    for (row, picture), some in found.items():
        whole = some if len(some) == 1 else [one for one in some if x.roles.views[row][one[0]].area == WHOLE]
        if not whole:
            raise InputsError(
                f"{what} takes its patches from the view that shows the whole picture, and picture {picture} of row"
                f" {row} has {len(some)} views and none that does: this family shows it in tiles alone."
            )
        yield row, whole[0][1]  # LLaVA-NeXT's tiles, stitched together, may show it as well, and come second


def _one_by_one(x: Inputs, own: Inputs) -> Int[Tensor, "tile patch"] | None:
    """The place of each patch's image token, as row * length + column, where tokens are patches one by one; -1 for what
    is no patch."""
    text = x.roles
    tokens = {cell: n for n, cell in _cells(x, text.patch.cpu(), x.batch)}
    images = int(sum(len({int(i) for i in row[here]}) for row, here in zip(text.image, text.patch, strict=True)))
    if len(own.valid) != images or len(tokens) != int(own.roles.patch.sum()):
        return None
    out, keys = torch.full(own.valid.shape, -1), sorted({cell[:2] for cell in tokens})
    for tile, (row, picture) in enumerate(keys):
        for position in own.roles.patch[tile].cpu().nonzero().flatten().tolist():
            place = tuple(int(getattr(own.roles, name)[tile, position]) for name in ("frame", "row", "col"))
            out[tile, position] = tokens[row, picture, *place]
    return out


def _cells(x: Inputs, patch: Tensor, rows: int) -> list[tuple[int, tuple[int, ...]]]:
    """(place, (row, picture, frame, row, column)) of every image token that has a cell."""
    found = []
    for row in range(rows):
        for column in patch[row].nonzero().flatten().tolist():
            said = (int(getattr(x.roles, name)[row, column]) for name in ("image", "frame", "row", "col"))
            found.append((row * x.length + column, (row, *said)))
    return found
