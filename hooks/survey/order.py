"""In which order a vision tower that no table lists holds its patches, proven on the pictures of a call.

Idea: the convolution that cuts the picture says how many rows and columns of patches there are. One pixel in the middle
of a patch is changed, and exactly one token may then be another where the first block is entered: for patches in rows,
token `lead + row * columns + column`. That is held for the corners and for some patches between them. The `lead` tokens
before them may not change when the whole picture does. What is not proven so has no map, and None is given.
Cost: a part of a forward pass a patch, up to the first block. Limits: not every patch is tried; patches that overlap by
half or more, and towers that mix patches before their first block, are not proven.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.pictures.grids import Patches
from interp.hooks.survey.dissect import first_tensor

BETWEEN = 6
"""Patches tried in addition to the corners."""


class _Enough(Exception):
    """What was looked for has been seen."""


class _Embedded:
    """The value before the first block of the vision tower, and the convolutions that ran before it."""

    def __init__(self, module: nn.Module, block: str, kwargs: Mapping[str, Any]) -> None:
        self.module, self.kwargs = module, dict(kwargs)
        self.block = module.get_submodule(block)
        self.cuts: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
        self.before: Tensor | None = None

    def of(self, pixels: Tensor) -> Tensor:
        """The tokens that the first block is given for these pictures, [row, position, d]."""
        self.cuts, self.before = [], None
        convolutions = [child for child in self.module.modules() if isinstance(child, nn.Conv2d)]
        handles = [child.register_forward_hook(self._cut) for child in convolutions]
        handles.append(self.block.register_forward_pre_hook(self._entered, with_kwargs=True))
        try:
            with torch.no_grad():
                self.module(**{**self.kwargs, "pixel_values": pixels})
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.empty(0) if self.before is None else self.before

    def _cut(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        self.cuts.append((module, args[0], output))

    def _entered(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        every: dict[int | str, Any] = dict(enumerate(args))
        every.update(kwargs)
        read = first_tensor(every)
        self.before = None if read is None else read[1].detach().clone()
        raise _Enough


def order(module: nn.Module, anatomy: Anatomy, kwargs: Mapping[str, Any]) -> Patches | None:
    """What the vision tower's config would say of its patches; None where that cannot be proven."""
    pixels, tower = kwargs.get("pixel_values"), anatomy.towers.get("vision")
    if tower is None or not torch.is_tensor(pixels) or pixels.ndim not in (4, 5):
        return None
    embedded = _Embedded(module, tower.layers[0].block, kwargs)
    plain = embedded.of(pixels)
    cut = _cutting(embedded, pixels)
    if cut is None or plain.ndim != 3 or plain.shape[0] != pixels.shape[:-3].numel():
        return None
    convolution, rows, columns = cut
    lead = plain.shape[1] - rows * columns
    other = embedded.of(pixels.flip(-1) + 1.0)
    if lead < 0 or other.shape != plain.shape or not torch.equal(other[:, :lead], plain[:, :lead]):
        return None
    for row, column in _tried(rows, columns):
        changed = pixels.clone()
        changed[..., _middle(convolution, 0, row), _middle(convolution, 1, column)] += 1.0
        moved = (embedded.of(changed) != plain).any(-1)
        expected = torch.zeros_like(moved)
        expected[:, lead + row * columns + column] = True
        if not torch.equal(moved, expected):
            return None
    height, width = pixels.shape[-2:]
    steps = (int(convolution.stride[0]), int(convolution.stride[1]))
    return Patches((height, width), steps, pixels.shape[-3], _named(lead), "traced")


def _cutting(embedded: _Embedded, pixels: Tensor) -> tuple[nn.Conv2d, int, int] | None:
    """The one convolution that takes strides over the pictures themselves."""
    fits = [
        (module, made.shape[-2], made.shape[-1])
        for module, given, made in embedded.cuts
        if given.shape[-3:] == pixels.shape[-3:] and module.stride[0] > 1 and module.padding != "same"
    ]
    return fits[0] if len(fits) == 1 else None


def _middle(convolution: nn.Conv2d, axis: int, number: int) -> int:
    padding = 0 if isinstance(convolution.padding, str) else convolution.padding[axis]
    return number * convolution.stride[axis] - padding + convolution.kernel_size[axis] // 2


def _tried(rows: int, columns: int) -> list[tuple[int, int]]:
    corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    chance = random.Random(0)
    between = [(chance.randrange(rows), chance.randrange(columns)) for _ in range(BETWEEN)]
    return list(dict.fromkeys([*corners, *between]))


def _named(lead: int) -> tuple[str, ...]:
    """A single token before the patches is what the picture is read off; of several it is not known which is which."""
    return ("cls",) if lead == 1 else ("prefix",) * lead
