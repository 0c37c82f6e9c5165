"""Towers that read sound: how many positions they have, which of them hold sound, and how long each lasts.

Idea: frames that are filling are told by the extractor's `attention_mask`, and where there is none by the signal: what
follows the last frame that is not blank, as extractors fill (in a waveform one value that stays; in log-mel features
every band at the lowest value of the clip). A clip that is blank throughout is silence and counts whole. The encoder's
convolutions are applied to the number of frames, as the models' own code does. Whisper itself looks at filling like at
sound: methods leave it as it is and do not count it, unless asked of `x.whole("encoder")`. Cost: no forward pass.
Limits: digital silence at the end of a clip that comes without a mask is taken for filling; other families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.hooks.errors import InputsError, UnknownPositions
from interp.hooks.inputs.labels import CODE, Roles

SOUND = ("input_values", "input_features")
STAYS = 16
"""Samples of one value at the end of a waveform that are filling; fewer can be chance."""
LOG_MEL = {"whisper": -1, "speech_to_text": 1, "wav2vec2-bert": 1}
"""Families that read features [row, frame, band], or [row, band, frame], and the axis that counts frames."""


def extractor_of(processor: Any) -> Any:
    """The part of a processor that listens, or None."""
    found = getattr(processor, "feature_extractor", processor)
    return found if hasattr(found, "sampling_rate") else None


def sound_valid(config: Any, kwargs: Mapping[str, Any]) -> Bool[Tensor, "row position"]:
    """Which positions of the tower that reads sound hold sound and not what fills the row up."""
    name = next(name for name in SOUND if name in kwargs)
    given = _frames(config, name, kwargs[name])
    filled = _filled(kwargs.get("attention_mask"), given)
    total, real = (positions(config, count) for count in (torch.tensor(given.shape[1]), filled))
    if bool((real < 1).any()):
        row = int((real < 1).nonzero()[0])
        raise InputsError(
            f"row {row} of {name} has {int(filled[row])} frames of sound, too few for one position of the encoder: give"
            " a longer clip."
        )
    return torch.arange(int(total), device=real.device)[None] < real[:, None]


def _frames(config: Any, name: str, value: Tensor) -> Bool[Tensor, "row frame"]:
    """Which frames (or samples) are not blank."""
    kind = getattr(config, "model_type", None)
    if kind in LOG_MEL and value.dim() == 3:
        bands = value.movedim(LOG_MEL[kind], 1).detach()
        lowest = bands.amin((1, 2), keepdim=True)
        return (bands != lowest).any(2)
    if name == "input_values" and value.dim() == 2 and _convolutions(config):
        heard = value.detach() != value.detach()[:, -1:]
        return heard | heard[:, -STAYS:].any(1, keepdim=True)
    raise UnknownPositions(
        f"cannot tell the positions of a call with {name} {list(value.shape)}: the encoder length of audio model"
        f" {kind!r} is not known"
    )


def _filled(mask: Any, heard: Tensor) -> Int[Tensor, " row"]:
    """How many frames of each row are sound, those before the last that is."""
    if isinstance(mask, Tensor) and mask.shape == heard.shape:
        heard = mask.bool().to(heard.device)
    count = torch.arange(1, heard.shape[1] + 1, device=heard.device)
    last = (heard * count).amax(1)
    return torch.where(last > 0, last, heard.shape[1])


def _convolutions(config: Any) -> list[tuple[int, int]]:
    """(kernel, stride) of the convolutions before the encoder of Wav2Vec2 and similar models."""
    kernels, strides = (getattr(config, name, None) or () for name in ("conv_kernel", "conv_stride"))
    return list(zip(kernels, strides, strict=True))


def positions(config: Any, frames: Tensor) -> Tensor:
    """How many positions the encoder makes of so many frames."""
    kind = getattr(config, "model_type", None)
    if kind in LOG_MEL:
        for _ in range(_halvings(config)):
            frames = torch.div(frames - 1, 2, rounding_mode="floor") + 1
        return frames
    for kernel, stride in _convolutions(config):
        frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
    return frames


def _halvings(config: Any) -> int:
    """How often convolutions halve the frames: the second one of Whisper, all of Speech2Text."""
    return {"whisper": 1, "speech_to_text": getattr(config, "num_conv_layers", 0)}.get(config.model_type, 0)


def seconds_of(config: Any, extractor: Any) -> float | None:
    """How much time a position of the encoder covers, where the extractor says its rate."""
    rate = getattr(extractor, "sampling_rate", None)
    kind = getattr(config, "model_type", None)
    if not rate:
        return None
    if kind in LOG_MEL:
        hop = getattr(extractor, "hop_length", None) or rate // 100
        return float(hop * getattr(extractor, "stride", 1) * 2 ** _halvings(config) / rate)
    steps = _convolutions(config)
    return math.prod(stride for _, stride in steps) / rate if steps else None


def sound_roles(config: Any, kwargs: Mapping[str, Any], extractor: Any = None) -> Roles:
    """Roles of a tower that reads sound: `audio` and `pad`."""
    valid = sound_valid(config, kwargs)
    kinds = torch.where(valid, CODE["audio"], CODE["pad"])
    none = torch.full_like(kinds, -1)
    blank = Roles(kinds, none, none, none, none, none, grids=((),) * len(valid), views=((),) * len(valid))
    return replace(blank, seconds=seconds_of(config, extractor))
