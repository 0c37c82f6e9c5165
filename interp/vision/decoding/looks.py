"""Image tokens raised where the next token is made, and the branch without a picture: what PAI and PAINT share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from interp.hooks.edits.edits import Emphasize
from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, head_place, spelled_together
from interp.hooks.inputs.inputs import Inputs
from interp.vision.decoding.contrast import Contrast, contrast
from interp.vision.decoding.without import Looking, without_pictures

if TYPE_CHECKING:
    from interp.model import Model


def raised(
    tower: Looking,
    keys: Iterable[tuple[str | Tensor, float]],
    *,
    first_layer: int,
    heads: Iterable[str] | None = None,
) -> tuple[Emphasize, ...]:
    """s + amount |s| on each key set, in the last row and every one after it; one edit a layer and key set."""
    every = tower.names if heads is None else list(heads)
    some = by_layer(head for head in every if head_place(head).layer >= first_layer)
    if not some:
        raise InputsError(
            f"first_layer={first_layer} leaves no head to change: there are {tower.depth} layers, counted from 0."
        )
    return tuple(
        Emphasize(spelled_together(name, numbers), keys=one, amount=amount, positions="last", onward=True)
        for one, amount in keys
        for name, numbers in some.items()
    )


def held_against_text(
    model: Model, x: Inputs, edits: tuple[Emphasize, ...], *, gamma: float, cutoff: float, what: str
) -> Contrast:
    """The edited branch against the question alone; against itself, which changes nothing, where gamma is 1."""
    if gamma < 1:
        raise InputsError(f"gamma= is at least 1 (1: no second branch counts); got {gamma}.")
    other = x if gamma == 1 else without_pictures(model, x, what=what)
    return contrast(model, x, edits=edits, against=other, amount=gamma - 1, cutoff=cutoff)
