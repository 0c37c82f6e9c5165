"""What a generated scene shows: its shape as `zoo:shapes-vit` names it, its colour and box by its pixels.

A pixel belongs to the thing where one of its channels is further than 40 of 255 from the ground; the box is around
these, the colour is the nearest of the scenes' to the mean of the third of them that is furthest from the ground. The
classifier knows shapes alone, and pictures of 48 x 48, to which smaller ones are enlarged: of true scenes at 24 x 24 it
names 0.97. Limits: one thing in a picture; a picture without any has an empty box and the colour -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.prompts.scenes import COLORS, GROUND, SHAPES

FAR = 40.0
PROMPTS: tuple[str, ...] = tuple(f"a {color} {shape} ." for color in COLORS for shape in SHAPES)
"""Everything that `zoo:shapes-dit` can be asked for."""
Pictures = Float[Tensor, "picture 3 row column"]


def chances(pictures: Pictures, classifier: Any) -> Float[Tensor, "picture shape"]:
    """How likely the classifier finds each of `SHAPES`."""
    side = classifier.config.image_size
    large = nn.functional.interpolate(pictures.clamp(-1, 1), (side, side), mode="bilinear")
    with torch.no_grad():
        found: Tensor = classifier(large).logits.softmax(-1)
    return found


def colors(pictures: Pictures) -> Int[Tensor, " picture"]:
    """The number of the colour in `COLORS`; -1 where there is only ground."""
    known = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    found = []
    for picture, far in zip(_bytes(pictures), _distance(pictures), strict=True):
        count = int((far > FAR).sum())
        most = far.flatten().topk(max(1, count // 3)).indices
        mean = picture.flatten(1)[:, most].mean(1)
        found.append(int((known - mean).norm(dim=1).argmin()) if count else -1)
    return torch.tensor(found)


def boxes(pictures: Pictures) -> Float[Tensor, "picture 4"]:
    """Left, top, right, bottom of the thing as fractions of the picture; all 0 where there is only ground."""
    found = []
    for far in _distance(pictures) > FAR:
        rows, columns = (np.flatnonzero(far.any(axis).numpy()) for axis in (1, 0))
        height, width = far.shape
        if not len(rows):
            found.append([0.0] * 4)
            continue
        found.append([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])
    return torch.tensor(found, dtype=torch.float32)


def asked(prompts: Sequence[str]) -> Int[Tensor, "prompt 2"]:
    """The numbers of the colour and of the shape that prompts ask for."""
    words = [prompt.split() for prompt in prompts]
    color = [next(n for n, one in enumerate(COLORS) if one in own) for own in words]
    shape = [next(n for n, one in enumerate(SHAPES) if one in own) for own in words]
    return torch.tensor([color, shape]).T


def right(pictures: Pictures, prompts: Sequence[str], classifier: Any) -> Float[Tensor, "picture 2"]:
    """Whether colour and shape are those that the prompt asks for, 1 or 0."""
    color, shape = asked(prompts).unbind(1)
    return torch.stack([colors(pictures) == color, chances(pictures, classifier).argmax(1) == shape], 1).float()


def _bytes(pictures: Pictures) -> Tensor:
    return (pictures.clamp(-1, 1) + 1) * 127.5


def _distance(pictures: Pictures) -> Tensor:
    """How far a pixel's furthest channel is from the ground, [picture, row, column]."""
    return (_bytes(pictures) - GROUND).abs().amax(1)
