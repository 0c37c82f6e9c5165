"""What a denoiser is called with, as `Inputs`: words and cells of the picture with their places, and which are padding.

Positions are those of the sequence that attends: with joint attention words and cells, else cells alone, and the words
are the tower `text`, which cross-attention reads. Cells have the role `image` (`video` where there are frames), words
`text`. Limits: a U-Net attends at several sizes; its positions are not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.denoisers.layout import Layout, layout
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import CODE, Roles
from interp.hooks.inputs.roles import place, plain
from interp.hooks.pictures.grids import Block


def denoised(module: nn.Module, call: Mapping[str, Any]) -> Inputs:
    """The arguments of one call of a denoiser, described."""
    found = layout(module, call)
    given = {name: value for name, value in call.items() if value is not None}
    valid = _valid(found)
    inputs = Inputs(given, valid, _roles(found, valid), main="denoiser")
    if not found.apart or found.words is None:
        return inputs
    words = found.words.cpu()
    return replace(inputs, towers={"text": Inputs(given, words, plain(words), main="text")})


def _valid(found: Layout) -> Tensor:
    parts = [
        found.words.cpu()
        if kind == "words" and found.words is not None
        else torch.ones(found.batch, count, dtype=torch.bool)
        for kind, count in found.runs
    ]
    return torch.cat(parts, 1)


def _roles(found: Layout, valid: Tensor) -> Roles:
    labels, start = plain(valid), 0
    for kind, count in found.runs:
        here = torch.arange(start, start + count)
        start += count
        if kind == "cells":
            block, name = Block(found.shape, found.cells), "video" if found.shape[0] > 1 else "image"
            labels = place(labels, name, [here] * found.batch, [[[block]]] * found.batch)
        if kind == "register":
            kinds = labels.kind.clone()
            kinds[:, here] = CODE["special"]
            labels = replace(labels, kind=kinds, tags={**labels.tags, "register": kinds == CODE["special"]})
    return labels
