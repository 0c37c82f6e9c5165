"""The same question with fewer image tokens, or with none: columns are taken out, and rows padded on the left again.

What has a number a token (ids, mask, token types) is cut alike; pixels and what describes them stay or go as a whole.
Image tokens are those of the roles, with newlines, tile tags and the marks around a picture (`roles.image`), never a
stretch by assumption. Cost: no forward pass. Limits: positions are counted anew by the model, as in a prompt that never
had a picture; a family whose forward wants pixels (BLIP-2) has no such prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import head_name
from interp.hooks.inputs.inputs import Inputs

if TYPE_CHECKING:
    from interp.model import Model

TOKENWISE = ("input_ids", "token_type_ids", "mm_token_type_ids")
"""Arguments with a number a token."""


def image_tokens(model: Model, inputs: Any, *, what: str) -> tuple[Inputs, Bool[Tensor, "batch position"]]:
    """The inputs and their image tokens; refused where the text holds none in some row."""
    x = model.inputs(inputs)
    if x.main != "text" or x.ids is None:
        raise InputsError(
            f"{what} asks how a text model looks at image tokens among its words, and these inputs have none: their"
            f" main tower is {x.main!r}. Give a vision-language model a text with a picture."
        )
    image = x.roles.where("image") & x.valid
    bare = (~image.any(1)).nonzero().flatten().tolist()
    if bare:
        raise InputsError(
            f"{what}: row {bare[0]} holds no image token, so heads have no picture to look at: give each text a"
            " picture, m.prepare(texts, images=...)."
        )
    return x, image


def placed_on_a_grid(x: Inputs, image: Tensor, *, what: str) -> None:
    """Refuse image tokens that have no place in the picture, such as those of a resampler or a Q-Former."""
    if not bool((x.roles.patch & image).any()):
        raise InputsError(
            f"{what}: this family's image tokens are queries of a resampler and belong to no patch of the picture, so"
            " there is no map from tokens to patches; the method has no meaning here."
        )


@dataclass(frozen=True)
class Looking:
    """The tower that reads words and image tokens, as its sites are spelled."""

    name: str
    layers: tuple[Layer, ...]
    width: int

    @property
    def prefix(self) -> str:
        """The start of its sites."""
        return f"{self.name}."

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return len(self.layers)

    @property
    def names(self) -> list[str]:
        """Its heads."""
        return [head_name(self.name, layer.index, head) for layer in self.layers for head in range(layer.heads)]


def looking_tower(model: Model, *, what: str, crossed: bool = False) -> Looking:
    """The text tower; `crossed` leaves out layers that look at the picture by cross-attention, else such models are
    refused: image tokens are no keys of their heads."""
    tower = model.ready().tower("text", text=what)
    found = [layer.index for layer in tower.layers if layer.kind == "cross"]
    if found and not crossed:
        raise ModelError(
            f"{what}: this model's text reads pictures by cross-attention (layers {found}), so image tokens are no keys"
            f" among its words: edit those layers themselves, interp.edits at 'text.L{found[0]}.H*'."
        )
    return Looking("text", tuple(layer for layer in tower.layers if layer.kind != "cross"), tower.width)


def without_pictures(model: Model, inputs: Any, *, what: str = "a text-only branch") -> Inputs:
    """The question alone: no image tokens, no marks around them, no pixels."""
    x, image = image_tokens(model, inputs, what=what)
    if "pixel_values" in wanted(model):
        raise ModelError(
            f"{what} leaves the picture out, and {type(model.module).__name__}'s forward cannot run without"
            " pixel_values: this family has no text-only prompt."
        )
    keep = x.valid & ~image & (x.roles.image < 0)
    empty = (~keep.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputsError(f"{what}: row {empty[0]} has a picture and no text; give it a question.")
    return model.inputs(cut(x, keep))


def wanted(model: Model) -> set[str]:
    """Arguments that forward cannot do without."""
    return {name for name, one in signature(model.module.forward).parameters.items() if one.default is one.empty}


def cut(x: Inputs, keep: Bool[Tensor, "batch position"]) -> dict[str, Any]:
    """The call with these columns alone, each row moved to the right end; pixels and their sizes are left out."""
    found = {name: moved(x.kwargs[name], keep) for name in TOKENWISE if name in x.kwargs}
    mask = moved(keep.long(), keep).to(found["input_ids"].device)
    positions = {}
    if "position_ids" in x.kwargs and x.kwargs["position_ids"].ndim == 2:
        positions["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + int(x.kwargs["position_ids"][x.valid].min())
    return {**found, **positions, "attention_mask": mask}


def moved(value: Tensor, keep: Tensor) -> Tensor:
    """[batch, position, ...] with the kept columns at the right end, filled up with 0 on the left."""
    here = keep.to(value.device)
    length = int(here.sum(1).max())
    out = value.new_zeros(len(value), length, *value.shape[2:])
    for row, kept in enumerate(here):
        out[row, length - int(kept.sum()) :] = value[row, kept]
    return out
