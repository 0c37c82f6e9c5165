"""Towers of which only the number of positions is known: places without a map to words, pictures or sound.

Idea: where no table says what a tower's positions are, a call that is watched still says how many there are. Positions
by number, heads and all that reads no roles then work, and what needs the map (a patch's place in the picture, a role)
finds no such role. A second stack over the same positions has those positions' own roles. Without a map it is not known
which positions are padding, so a call with padding keeps such towers unknown. Cost: no forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import UnknownPositions
from interp.hooks.inputs.arguments import checked
from interp.hooks.inputs.inputs import ALIASES, Inputs
from interp.hooks.inputs.roles import plain
from interp.hooks.inputs.sound import SOUND
from interp.hooks.pictures.grids import Patches

OWN = ("cross", "qformer")
"""Towers whose positions are others', or queries. Without a decoder, queries of a cross-attention are a Q-Former's,
unless the inputs have a tower `cross`: words (BLIP) or learned queries (MaskFormer) that look at pictures."""


def lacking(inputs: Inputs | None, towers: Collection[str]) -> list[str]:
    """The towers whose positions these inputs do not know."""
    every = [name for name in towers if name not in OWN]
    if inputs is None:
        return every
    unknown = [name for name in every if not isinstance(_known(inputs, name), Inputs)]
    looks = "cross" in towers and "qformer" not in towers and inputs.main != "decoder" and "cross" not in inputs.towers
    return [*unknown, "cross"] if looks else unknown


def completed(
    inputs: Inputs | None, kwargs: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], largest: str
) -> Inputs:
    """The inputs with towers of these rows and positions where they know none; `largest` is the main tower of a call
    about which nothing else is known."""
    if inputs is None:
        if largest not in sizes:
            raise UnknownPositions(f"the tower {largest!r} does not run in this call, so its positions are not known")
        inputs = _alone(kwargs, largest, sizes[largest])
    towers: dict[str, Any] = {}
    for name in lacking(inputs, list(sizes)):
        twin = _known(inputs, _stem(name))
        if isinstance(twin, Inputs) and tuple(twin.valid.shape) == sizes[name]:
            towers[name] = twin
        elif _padded(kwargs, name):
            towers[name] = (
                f"the tower {name!r} has {sizes[name][1]} positions in this call, which has padding: which of them are"
                " real is not known; run inputs without padding"
            )
        else:
            towers[name] = _alone(kwargs, name, sizes[name])
    return replace(inputs, towers={**inputs.towers, **towers}) if towers else inputs


def untold(inputs: Inputs, names: Collection[str], what: str) -> Inputs:
    """The inputs with towers whose positions cannot be told now, and what to do."""
    why = {name: _known(inputs, name) or f"the positions of the tower {name!r} are not known" for name in names}
    return replace(inputs, towers={**inputs.towers, **{name: f"{said}; {what}" for name, said in why.items()}})


def mapped(inputs: Inputs, patches: Patches, sizes: Mapping[str, tuple[int, int]]) -> Inputs:
    """The inputs with the vision tower's patches where the picture says, if that makes as many positions as ran."""
    call = {"pixel_values": inputs.kwargs["pixel_values"].flatten(0, -4)}
    found = replace(Inputs.of(call, config=patches), kwargs=inputs.kwargs)
    known = isinstance(_known(inputs, "vision"), Inputs)  # else it has padding
    if not known or tuple(found.valid.shape) != sizes.get("vision"):
        return inputs
    if inputs.main == "vision":
        return replace(found, towers=inputs.towers)
    return replace(inputs, towers={**inputs.towers, "vision": found})


def _known(inputs: Inputs, name: str) -> Any:
    return inputs.towers.get(name, inputs if name in ALIASES[inputs.main] else None)


def _stem(name: str) -> str:
    return name.rstrip("0123456789")


def _alone(kwargs: Mapping[str, Any], name: str, size: tuple[int, int]) -> Inputs:
    stem = _stem(name)
    sound = any(kwargs.get(one) is not None for one in SOUND) and stem in ("encoder", "audio")
    kind = "audio" if sound else {"vision": "image", "denoiser": "special"}.get(stem, "text")
    device = next((x.device for x in kwargs.values() if isinstance(x, Tensor)), None)
    valid = torch.ones(*size, dtype=torch.bool, device=device)
    return Inputs(checked(kwargs), valid, plain(valid, kind), main=stem if stem in ALIASES else "text")


def _padded(kwargs: Mapping[str, Any], name: str) -> bool:
    """Whether any mask that a tower may see leaves something out."""
    stem = _stem(name)

    def seen(key: str) -> bool:
        if stem in ("encoder", "audio") and key.startswith("decoder"):
            return False
        return "mask" in key and ("pixel" in key or "image" in key) == (stem == "vision")

    masks = [x for key, x in kwargs.items() if seen(key) and isinstance(x, Tensor) and x.numel()]
    return any(bool((mask != mask.flatten()[0]).any()) for mask in masks)
