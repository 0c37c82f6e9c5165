"""Weights of image tokens as a map over the pixels of the picture that was given.

A token's weight is spread evenly over its cell's box (`Roles.boxes`: tiles, merged patches, crops and padding as the
family has them), and views that overlap (a thumbnail over tiles) add up:

    map[y, x] = sum over tokens j of w_j |pixel in box_j| / |box_j|

so that the map sums to the weight of the tokens that have a box. Tokens without one (newlines, marks, cells of padding)
are left out. Cost: no forward pass. Limits: a token knows more of the picture than its cell; the map says where its
cell is.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs

NO_CELLS = (
    "there is no map from tokens to patches: these image tokens (queries of a resampler or Q-Former, or one token for"
    " the whole picture) have no cells"
)


def boxes_of(x: Inputs, *, what: str) -> Float[Tensor, "batch position 4"]:
    """Boxes in pixels (left, top, right, bottom); refused where no image token has a cell, or sizes are not known."""
    if not bool((x.roles.patch & x.roles.where("image")).any()):
        raise InputsError(f"{what}: {NO_CELLS}.")
    return x.roles.boxes()


def size_of(x: Inputs, row: int, picture: int = 0) -> tuple[int, int]:
    """(height, width) of a row's picture, pictures of a row counted from 0."""
    mine = list(dict.fromkeys(view.picture for view in x.roles.views[row]))
    if not 0 <= picture < len(mine):
        raise InputsError(f"row {row} has {len(mine)} pictures, so there is no picture {picture}.")
    if x.roles.sizes is None:
        raise InputsError("the pictures' sizes are not known: prepare the inputs from pictures, m.prepare(images=...).")
    height, width = x.roles.sizes[mine[picture]]
    return int(height), int(width)


def shown_in(x: Inputs, row: int, picture: int = 0) -> Bool[Tensor, " position"]:
    """The row's tokens that have a cell of this picture."""
    labels = x.roles
    return (labels.patch & labels.where("image"))[row].cpu() & (labels.image[row].cpu() == picture)


def pixel_map(
    weights: Float[Tensor, "*lead token"], boxes: Float[Tensor, "token 4"], size: tuple[int, int]
) -> Float[Tensor, "*lead height width"]:
    """The map of some weights whose cells have these boxes."""
    kept = ~boxes.isnan().any(-1)
    some, mine = weights[..., kept].double(), boxes[kept].double()
    down, across = _share(mine[:, 1], mine[:, 3], size[0]), _share(mine[:, 0], mine[:, 2], size[1])
    return torch.einsum("...t,th,tw->...hw", some, down, across)


def _share(start: Tensor, end: Tensor, pixels: int) -> Float[Tensor, "token pixel"]:
    """How much of each stretch is in each pixel; rows sum to 1."""
    at = torch.arange(pixels, dtype=start.dtype)
    inside = (torch.minimum(end[:, None], at + 1) - torch.maximum(start[:, None], at)).clamp(min=0)
    return inside / (end - start)[:, None]


def inputs_of(model: Any, images: Any, questions: Any, *, chat: Any = None) -> Inputs:
    """Inputs of one picture (or several) a question, or those that are prepared already."""
    if questions is None:
        return model.inputs(images)
    asked = [questions] if isinstance(questions, str) else list(questions)
    seen = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(asked) != len(seen):
        raise InputsError(f"{len(seen)} pictures for {len(asked)} questions: give each question its own (or a list).")
    rows = [list(one) if isinstance(one, (list, tuple)) else [one] for one in seen]
    return model.prepare(asked, images=rows, chat=chat)
