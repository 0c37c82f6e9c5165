"""What a denoiser is called with, as `Inputs`: words and cells of the picture with their places, and which are padding.

Positions are those of the sequence that attends: with joint attention words and cells, else cells alone. Words by
themselves are the towers `text` and `words`, which cross-attention reads, which refine them or are their own residual;
joint attention also has the tower `cells`, the positions of the picture's residual. Cells have the role `image`
(`video` where there are frames), words `text`. Limits: a U-Net attends at several sizes; its positions are not known.
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
    return replace(_inputs(found, given), towers=_towers(found, given))


def counted(module: nn.Module, call: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> Inputs:
    """The same of a class whose tokens are not known: how many positions each tower has, by [rows, positions] of its
    attention; rows of frames or of cells are positions of their example."""
    latents = call.get("hidden_states", call.get("sample"))
    batch = len(latents) if torch.is_tensor(latents) else 1
    given = {name: value for name, value in call.items() if value is not None}
    made = {}
    for name, (rows, length) in sizes.items():
        whole = (batch, rows * length // batch) if rows * length % batch == 0 else (rows, length)
        valid = torch.ones(*whole, dtype=torch.bool)
        made[name] = Inputs(given, valid, plain(valid, "special"), main="denoiser")
    main = made.pop("denoiser", None) or next(iter(made.values()))
    return replace(main, towers=made)


def _inputs(found: Layout, given: Mapping[str, Any], main: str = "denoiser") -> Inputs:
    valid = _valid(found)
    return Inputs(given, valid, _roles(found, valid), main=main)


def _towers(found: Layout, given: Mapping[str, Any]) -> dict[str, Inputs]:
    """Words and cells separately."""
    if found.words is None:
        return {}
    valid = found.words.cpu()
    words = Inputs(given, valid, plain(valid), main="text")
    if found.apart:
        return {"text": words}
    alone = replace(found, runs=(("cells", len(found.cells)),))
    return {"text": words, "words": words, "cells": _inputs(alone, given)}


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
