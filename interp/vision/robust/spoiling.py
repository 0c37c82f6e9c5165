"""Boxes of pictures, what is put into them, and where heads look before and after.

`grey` is the picture's mean colour, `black` is 0, `noise` are random pixels, `shuffle` the box's own pixels in another
order; a function gets the pixels uint8 [height, width, 3] and gives others of that shape. A picture-text model's looks
are those of the last token on image tokens, in the text; a vision model's are those of its class token on patches, or
the mean of all patches' where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.writes import spelled
from interp.preparing.pictures import picture
from interp.vision.decoding.without import looking_tower

if TYPE_CHECKING:
    from interp.model import Model

How = str | Callable[[np.ndarray], np.ndarray]
Place = tuple[int, int, int, int]
KNOWN = ("grey", "black", "noise", "shuffle")


@dataclass(frozen=True, eq=False)
class Questioned:
    """One picture a row, with its question where the model reads text."""

    model: Model
    pictures: tuple[Any, ...]
    questions: tuple[str, ...] | None
    chat: Any = None

    @classmethod
    def of(cls, model: Model, images: Any, questions: Any, chat: Any = None) -> Questioned:
        """Checked: as many pictures as questions."""
        given = list(images) if isinstance(images, (list, tuple)) else [images]
        if not given:
            raise InputsError("images= is at least one picture.")
        asked = None if questions is None else (questions,) if isinstance(questions, str) else tuple(questions)
        if asked is not None and len(asked) != len(given):
            raise InputsError(f"{len(given)} pictures for {len(asked)} questions: give each question its own picture.")
        return cls(model, tuple(picture(one, f"image {n}") for n, one in enumerate(given)), asked, chat)

    def inputs(self, pictures: Sequence[Any] | None = None) -> Inputs:
        """The call, with other pictures of the same sizes."""
        shown = list(self.pictures if pictures is None else pictures)
        if self.questions is None:
            return self.model.prepare(images=shown)
        return self.model.prepare(list(self.questions), images=[[one] for one in shown], chat=self.chat)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture."""
        return [(one.height, one.width) for one in self.pictures]


def cells_of(size: tuple[int, int], grid: tuple[int, int]) -> list[Place]:
    """The boxes (left, top, right, bottom) of a grid over a picture, line by line."""
    (height, width), (rows, columns) = size, grid
    if not (0 < rows <= height and 0 < columns <= width):
        raise InputsError(f"grid= is rows and columns, at least one pixel each; got {grid} for {height} x {width}.")
    across, down = (
        [round(side * n / count) for n in range(count + 1)] for side, count in ((width, columns), (height, rows))
    )
    return [(across[c], down[r], across[c + 1], down[r + 1]) for r in range(rows) for c in range(columns)]


def grid_of(x: Inputs) -> tuple[int, int]:
    """Rows and columns of the first grid of image tokens (of patches, in a vision model)."""
    found = next(((h, w) for row in x.roles.grids for _, h, w in row if h and w), None)
    if found is None:
        raise InputsError("image tokens have no grid in this family: pass grid=(rows, columns) of the picture.")
    return found


def spoilt(one: Any, box: Place, how: How, random: np.random.Generator) -> Any:
    """A picture with something else in a box."""
    from PIL import Image

    pixels = np.array(one)
    left, top, right, bottom = box
    inside = pixels[top:bottom, left:right]
    if callable(how):
        new = np.asarray(how(inside.copy()))
        if new.shape != inside.shape or new.dtype != np.uint8:
            raise InputsError(
                f"how= gives uint8 {list(inside.shape)} for such pixels, got {new.dtype} {list(new.shape)}."
            )
    elif how == "grey":
        new = np.broadcast_to(pixels.reshape(-1, 3).mean(0).round().astype(np.uint8), inside.shape)
    elif how == "black":
        new = np.zeros_like(inside)
    elif how == "noise":
        new = random.integers(0, 256, inside.shape, dtype=np.uint8)
    elif how == "shuffle":
        new = random.permutation(inside.reshape(-1, 3)).reshape(inside.shape)
    else:
        raise InputsError(f"how= are some of {', '.join(KNOWN)}, or functions of pixels; got {how!r}.")
    pixels[top:bottom, left:right] = new
    return Image.fromarray(pixels)


@dataclass(frozen=True, eq=False)
class Watching:
    """Heads of the tower that answers, and what they look at."""

    model: Model
    sites: tuple[str, ...]
    record: str
    row: str | None
    """Which token looks; None for all patches."""

    @classmethod
    def of(cls, model: Model, x: Inputs) -> Watching:
        """The text's heads where there is text, else those of the picture."""
        if x.main == "text":
            text = looking_tower(model, what="looks of heads")
            return cls(model, tuple(text.names), f"{text.prefix}L*.pattern", "last")
        if x.main != "vision":
            raise InputsError(f"pictures are spoilt in models that see; the main tower of these inputs is {x.main!r}.")
        tower = model.ready().tower("vision", text="looks of heads")
        name, has_class = spelled(model.anatomy, tower), bool(x.roles.where("cls").any())
        sites = tuple(head_name(name, layer.index, head) for layer in tower.layers for head in range(layer.heads))
        record = "L*.pattern" if name is None else f"{name}.L*.pattern"
        return cls(model, sites, record, "cls" if has_class else None)

    def run(self, x: Inputs, edits: Sequence[Edit] = ()) -> tuple[Tensor, Float[Tensor, "head example position"]]:
        """Logits, and each head's weights on cells of the picture."""
        tape = self.model.run(x, record=[self.record], edits=edits, positions=self.row)
        patch = looked_at(x)
        parts = []
        for site in self.model.sites(self.record):
            rows = tape[site].double().cpu()
            asked = torch.ones_like(patch) if self.row is not None else patch
            mean = rows.mean(2) if self.row is not None else _over(rows, asked)
            parts.append((mean * patch[:, None]).transpose(0, 1))
        return tape["logits"], torch.cat(parts)


def _over(rows: Tensor, asked: Tensor) -> Tensor:
    weight = asked.double() / asked.sum(1, keepdim=True)
    return torch.einsum("bhqk,bq->bhk", rows, weight)


def looked_at(x: Inputs) -> Bool[Tensor, "example position"]:
    """The image tokens."""
    found = (x.roles.where("image") & x.valid).cpu()
    return found & x.roles.patch.cpu() if bool(x.roles.patch.any()) else found


def distance(a: Float[Tensor, "head example key"], b: Tensor) -> Float[Tensor, "head example"]:
    """Total variation between where two runs look, each as shares of the weight on the picture."""
    one, other = (part / part.sum(-1, keepdim=True).clamp(min=1e-12) for part in (a, b))
    return (one - other).abs().sum(-1) / 2
