"""Inputs for a model whose arguments no record describes: shapes that such arguments have elsewhere, tried in turn.

Sound comes as frames of a spectrogram, either axis first, or as waves; video has frames before channels; pictures come
whole, with their sizes, cut into patches with a grid, or with a mask; series of numbers come by channel. A candidate is
taken where the model's own forward goes through with it, so what is tried is the model and not a guess about it.
Cost: a forward pass a candidate. Limits: noise; a model that takes anything and attends to nothing is not noticed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from interp.hooks.anatomy.heard import heard
from interp.hooks.pictures.asked import Ask, Picture, is_image, sides

STOPS = (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises on inputs that are not its own."""
FRAMES, WAVES, SIDE = 64, 4000, 64
Call = dict[str, Tensor]


def tried(ask: Ask, decoder: Callable[[Ask], Call]) -> Call | None:
    """The first candidate that the model's forward takes; `decoder` makes a decoder's row."""
    beside = decoder(ask) if "decoder_input_ids" in ask.accepts else {}
    for candidate in _candidates(ask):
        call = {**candidate, **beside}
        if _goes(ask, ask.module, call) is not None:
            return call
    return None


def _goes(ask: Ask, call: Callable[..., Any], kwargs: Mapping[str, Tensor]) -> Any:
    """What a call gives; None where the model does not take it."""
    moved = {k: x.to(ask.device, ask.dtype if x.is_floating_point() else None) for k, x in kwargs.items()}
    try:
        with torch.no_grad():
            return call(**moved)
    except STOPS:
        return None


def _candidates(ask: Ask) -> Iterator[Call]:
    yield from heard(ask)
    accepts, b = ask.accepts, ask.batch
    bins = _number(ask.config, "num_mel_bins", "feature_size", "input_feat_per_channel", "num_features", otherwise=80)
    longest = 2 * _number(ask.config, "max_source_positions", otherwise=FRAMES // 2)
    masks = sorted({"attention_mask", "input_features_mask", "audio_mel_mask"} & accepts)
    for name in sorted({"input_features", "audio_mel"} & accepts):
        for frames in (FRAMES, longest):
            for sound in (ask.noise(b, frames, bins), ask.noise(b, bins, frames)):
                yield {name: sound}
                yield from ({name: sound, mask: torch.ones(b, frames, dtype=torch.long)} for mask in masks)
                yield from ({name: sound, mask: torch.zeros(b, frames, dtype=torch.bool)} for mask in masks)
    if "input_values" in accepts:
        frames = _number(ask.config, "max_length", otherwise=FRAMES)
        for shape in ((b, frames, bins), (b, WAVES), (b, 1, WAVES)):
            yield {"input_values": ask.noise(*shape)}
    yield from _seen(ask)
    if "past_values" in accepts:
        length, channels = (_number(ask.config, *names, otherwise=n) for names, n in
                            ((("context_length",), 32), (("num_input_channels",), 1)))  # fmt: skip
        yield {"past_values": ask.noise(b, length, channels)}
        yield {"past_values": ask.noise(b, length)}


def _seen(ask: Ask) -> Iterator[Call]:
    """Pictures and video alone."""
    frames = _number(ask.config, "num_frames", otherwise=2)
    whole = pictures(ask)
    channels, height, width = whole.shape[1:]
    if "pixel_values_videos" in ask.accepts:
        yield {"pixel_values_videos": ask.noise(ask.batch, frames, channels, height, width)}
    if "pixel_values" in ask.accepts and "input_ids" not in ask.accepts:
        yield {"pixel_values": whole}
        yield {"pixel_values": ask.noise(ask.batch, frames, channels, height, width)}
    if "grid_thw" in ask.accepts:
        patches, grid = _cut(ask)
        for name in sorted({"hidden_states", "pixel_values"} & ask.accepts):
            yield {name: patches, "grid_thw": grid}


def joined(ask: Ask) -> Picture | None:
    """A picture in words, for a model that is asked what it makes of one: how many tokens it is."""
    token, look = getattr(ask.config, "image_token_id", None), getattr(ask.module, "get_image_features", None)
    if not isinstance(token, int) or look is None:
        return None
    for tensors in _pictures(ask, signature(look).parameters):
        features = _goes(ask, look, tensors)
        if features is not None and (count := _tokens_in(features)):
            return Picture([token] * count, tensors, extra=_types)
    return None


def _types(ask: Ask, ids: Tensor, mask: Tensor) -> Call:
    return {"mm_token_type_ids": is_image(ask, ids)} if "mm_token_type_ids" in ask.accepts else {}


def _pictures(ask: Ask, named: Any) -> Iterator[Call]:
    whole = pictures(ask)
    height, width = whole.shape[2:]
    if "image_grid_thw" in named:
        patches, grid = _cut(ask)
        yield {"pixel_values": patches, "image_grid_thw": grid}
    if "image_sizes" in named:
        sizes = torch.tensor([[height, width]] * ask.batch)
        yield {"pixel_values": whole, "image_sizes": sizes}
        yield {"pixel_values": whole[:, None], "image_sizes": sizes}
    yield {"pixel_values": whole}
    yield {"pixel_values": whole[:, None]}
    if "pixel_attention_mask" in named:
        mask = torch.ones(ask.batch, 1, height, width, dtype=torch.bool)
        yield {"pixel_values": whole[:, None], "pixel_attention_mask": mask}


def _tokens_in(features: Any) -> int:
    """How many tokens a first picture makes."""
    found = getattr(features, "pooler_output", features)
    while isinstance(found, (list, tuple)) and found:
        found = found[0]
    if not torch.is_tensor(found) or found.ndim < 2:
        return 0
    return int((found[0] if found.ndim > 2 else found).flatten(0, -2).shape[0])


def _cut(ask: Ask) -> tuple[Tensor, Tensor]:
    """Patches of pictures of 2 x 3 merged cells, flat, and their grids."""
    vision = next((c for c in _with_inner(ask.config) if hasattr(c, "spatial_merge_size")), ask.config)
    merge = _number(vision, "spatial_merge_size", otherwise=2)
    rows, columns = 2 * merge, 3 * merge
    side = sides(getattr(vision, "patch_size", 8))[0]
    values = _number(vision, "in_channels", "num_channels", otherwise=3) * side**2
    values *= _number(vision, "temporal_patch_size", otherwise=1)
    grid = torch.tensor([[1, rows, columns]] * ask.batch)
    return ask.noise(ask.batch * rows * columns, values), grid


def pictures(ask: Ask) -> Tensor:
    """Noise [batch, channel, height, width] of the size that the config or one inside it says."""
    seeing = next((c for c in _with_inner(ask.config) if getattr(c, "image_size", None)), None)
    size = SIDE if seeing is None else seeing.image_size
    size = (size["height"], size["width"]) if isinstance(size, dict) else size
    channels = _number(ask.config if seeing is None else seeing, "num_channels", otherwise=3)
    return ask.noise(ask.batch, channels, *sides(size))


def _with_inner(config: Any) -> Iterator[Any]:
    yield config
    for value in list(getattr(config, "__dict__", {}).values()):
        if hasattr(value, "model_type"):
            yield from _with_inner(value)


def _number(config: Any, *names: str, otherwise: int) -> int:
    """A number that a config or one inside it says under one of these names."""
    for one in _with_inner(config):
        for name in names:
            if isinstance(found := getattr(one, name, None), int) and found > 0:
                return found
    return otherwise
