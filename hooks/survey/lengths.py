"""How many rows and positions each tower has in a call, seen as its first block is entered.

For towers of which nothing else says it: sound behind convolutions that no table lists, video, pictures whose grid is
not known. Rows are pictures, tiles or examples, one alone where a model packs all pictures one after another.
Cost: a forward pass. Limits: towers that do not run in the call are left out; of a block that runs several times, the
first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from threading import get_ident
from typing import Any

import torch
from torch import nn

from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.survey.dissect import first_tensor

Size = tuple[int, int]
"""Rows and positions."""


def lengths(module: nn.Module, anatomy: Anatomy, kwargs: Mapping[str, Any]) -> dict[str, Size]:
    """Rows and positions of each tower that runs when the module is called so."""
    found: dict[str, Size] = {}
    thread = get_ident()

    def look(tower: Tower) -> Any:
        def entered(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            every: dict[int | str, Any] = dict(enumerate(args))
            every.update(given)
            read = first_tensor(every)
            if get_ident() == thread and read is not None and tower.name not in found:
                found[tower.name] = size_of(read[1].shape, tower.width)

        return entered

    with ExitStack() as undo, torch.no_grad():
        for tower in anatomy.towers.values():
            block = module.get_submodule(tower.layers[0].block)
            undo.callback(block.register_forward_pre_hook(look(tower), with_kwargs=True).remove)
        module(**kwargs)
    return found


def size_of(shape: torch.Size, width: int) -> Size:
    """Rows and positions of a residual [row, position, d], [position, d], [row, down, across, d] or [row, d, ...]."""
    if len(shape) == 2:
        return 1, shape[0]
    channels_first = len(shape) == 4 and shape[1] == width != shape[-1]
    return shape[0], prod(shape[2:] if channels_first else shape[1:-1])
