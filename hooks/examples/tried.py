"""Inputs for a model whose arguments no record describes: shapes that such arguments have elsewhere, tried in turn.

Sound comes as frames of a spectrogram, either axis first, or as waves; video has frames before channels; pictures come
whole, with their sizes, cut into patches with a grid, or with a mask; series of numbers come by channel. A candidate is
taken where the model's own forward goes through with it, so what is tried is the model and not a guess about it.
Cost: a forward pass a candidate. Limits: noise; a model that takes anything and attends to nothing is not noticed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import nn

from interp.hooks.examples.heard import heard
from interp.hooks.examples.joined import Call, goes, layouts
from interp.hooks.examples.parts import parts
from interp.hooks.examples.sizes import cut_of, number, pictures
from interp.hooks.pictures.asked import Ask

FRAMES, WAVES = 64, 4000
WINDOWS, PIECES = 400, 3840
"""Frames and samples that fill whole windows where a model takes nothing else."""


def tried(ask: Ask, decoder: Callable[[Ask], Call]) -> Call | None:
    """The first candidate that the model's forward takes; `decoder` makes a decoder's row."""
    beside = decoder(ask) if "decoder_input_ids" in ask.accepts else {}
    for candidate in _candidates(ask):
        call = {**candidate, **beside}
        if goes(ask, ask.module, call) is not None:
            return call
    return None


def _candidates(ask: Ask) -> Iterator[Call]:
    yield from heard(ask)
    yield from parts(ask)
    accepts, b = ask.accepts, ask.batch
    longest = 2 * number(ask.config, "max_source_positions", otherwise=FRAMES // 2)
    masks = sorted({"attention_mask", "input_features_mask", "audio_mel_mask"} & accepts)
    for name in sorted({"input_features", "audio_mel"} & accepts):
        for bins, frames in product(_bins(ask), dict.fromkeys((FRAMES, longest, WINDOWS))):
            for sound in (ask.noise(b, frames, bins), ask.noise(b, bins, frames)):
                yield {name: sound}
                yield from ({name: sound, mask: torch.ones(b, frames, dtype=torch.long)} for mask in masks)
                yield from ({name: sound, mask: torch.zeros(b, frames, dtype=torch.bool)} for mask in masks)
    if "input_values" in accepts:
        frames = number(ask.config, "max_length", otherwise=FRAMES)
        for shape in ((b, frames, _bins(ask)[0]), (b, WAVES), (b, 1, WAVES), (b, PIECES)):
            yield {"input_values": ask.noise(*shape)}
    yield from _seen(ask)
    if "past_values" in accepts:
        length, channels = (number(ask.config, *names, otherwise=n) for names, n in
                            ((("context_length",), 32), (("num_input_channels",), 1)))  # fmt: skip
        yield {"past_values": ask.noise(b, length, channels)}
        yield {"past_values": ask.noise(b, length)}
        if {"past_values_padding", "freq"} <= accepts:
            none = torch.zeros(b, length, dtype=torch.long)
            yield {"past_values": ask.noise(b, length), "past_values_padding": none, "freq": none[:, :1]}


def _seen(ask: Ask) -> Iterator[Call]:
    """Pictures and video alone."""
    frames = number(ask.config, "num_frames", otherwise=2)
    whole = pictures(ask)
    channels, height, width = whole.shape[1:]
    if "pixel_values_videos" in ask.accepts:
        yield {"pixel_values_videos": ask.noise(ask.batch, frames, channels, height, width)}
    if "pixel_values" in ask.accepts and "input_ids" not in ask.accepts:
        yield {"pixel_values": whole}
        yield {"pixel_values": ask.noise(ask.batch, frames, channels, height, width)}
        yield from layouts(ask, set(ask.accepts))
    if "grid_thw" in ask.accepts:
        cut = cut_of(ask)
        for name in sorted({"hidden_states", "pixel_values"} & ask.accepts):
            yield {name: ask.noise(ask.batch * cut.cells, cut.values), "grid_thw": cut.sizes(three=True)}


def _bins(ask: Ask) -> list[int]:
    """Bands of a spectrogram: as the config says, or as the first layer that reads them does, or as many have."""
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "num_features", "input_feat_size")
    said = number(ask.config, *names, otherwise=80)
    linear = next((part.in_features for part in ask.module.modules() if isinstance(part, nn.Linear)), said)
    norm = next((part.normalized_shape[-1] for part in ask.module.modules() if isinstance(part, nn.LayerNorm)), said)
    stacked = said * number(ask.config, "num_stacked_frames", otherwise=1)
    return list(dict.fromkeys((said, stacked, linear, norm, 128)))
