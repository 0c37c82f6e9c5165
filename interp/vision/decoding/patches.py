"""How much the class token of a vision tower looks at each patch, and which image token of the text each patch became.

The map is by cell: an image token and a patch belong together where both say the same picture, frame, row and column of
one grid. That holds where tokens are the tower's patches one by one (LLaVA). Tokens that several patches were merged
into (pixel shuffle, windows) or that were stitched of several tiles (anyres) are refused: a patch has no token there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks.anatomy.towers import Tower
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs

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


def class_looks(model: Model, x: Inputs, layer: int, *, split: bool, what: str) -> Float[Tensor, "tile head position"]:
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


def tokens_of(x: Inputs, own: Inputs, *, what: str) -> Int[Tensor, "tile patch"]:
    """The place of each patch's image token, as row * length + column; -1 for what is no patch."""
    text = x.roles
    tokens = {cell: n for n, cell in _cells(x, text.patch.cpu(), x.batch)}
    out = torch.full(own.valid.shape, -1)
    images = int(sum(len({int(i) for i in row[here]}) for row, here in zip(text.image, text.patch, strict=True)))
    if len(own.valid) != images or len(tokens) != int(own.roles.patch.sum()):
        raise InputsError(
            f"{what} needs to know which image token each patch became, and here {int(own.roles.patch.sum())} patches"
            f" in {len(own.valid)} tiles became {len(tokens)} image tokens of {images} pictures: merged or stitched,"
            " as in InternVL and LLaVA-NeXT. That is not known patch by patch."
        )
    keys = sorted({cell[:2] for cell in tokens})
    for tile, (row, picture) in enumerate(keys):
        for position in own.roles.patch[tile].cpu().nonzero().flatten().tolist():
            place = tuple(int(getattr(own.roles, name)[tile, position]) for name in ("frame", "row", "col"))
            out[tile, position] = tokens[row, picture, *place]
    return out


def _cells(x: Inputs, patch: Tensor, rows: int) -> list[tuple[int, tuple[int, ...]]]:
    """(place, (row, picture, frame, row, column)) of every image token that stands for a cell."""
    found = []
    for row in range(rows):
        for column in patch[row].nonzero().flatten().tolist():
            said = (int(getattr(x.roles, name)[row, column]) for name in ("image", "frame", "row", "col"))
            found.append((row * x.length + column, (row, *said)))
    return found
