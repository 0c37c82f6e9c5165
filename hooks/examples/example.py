"""Minimal valid inputs for a model nobody gave us inputs for: what the first traced call and the self-checks run on.

Idea: sizes, token ids and counts are read from the config, never from a checkpoint's name, so a tiny random model and
the released one go the same way. Language models get random words, image towers noise of the size they expect, models
of both one image per row between words, encoder-decoders a shorter decoder row. Padded batches have rows of unlike
length. Cost: no forward pass. Limits: the words mean nothing; one image per row, no video; a model that joins images
and words in a way no record in `hooks/pictures/` says is refused rather than guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.lengths import longest
from interp.hooks.denoisers.calls import call_of, denoises
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.heard import beside_words
from interp.hooks.examples.joined import joined
from interp.hooks.examples.sizes import pictures, with_inner
from interp.hooks.examples.tried import tried
from interp.hooks.pictures.asked import Ask, Picture, cells, no_example, pixels_for
from interp.hooks.pictures.grids import picture_size
from interp.hooks.pictures.record import family_of


def example(
    module: nn.Module, *, batch: int = 1, length: int = 8, padding: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Keyword arguments for one forward call; `length` counts words, image tokens come on top."""
    if batch < 1 or length < 1:
        raise InputsError(f"an example needs at least one row and one word, got batch={batch}, length={length}.")
    if padding not in (None, "left", "right"):
        raise InputsError(f"padding is None, 'left' or 'right', got {padding!r}.")
    inner = _underlying(module)
    length = min(length, longest(getattr(inner, "config", None)) or length)
    ask = Ask(inner, batch, length, padding, torch.Generator().manual_seed(seed))
    if denoises(ask.module):
        return moved(call_of(ask.module, batch=batch, random=ask.random), ask.device, ask.dtype)
    try:
        made = _recipe(ask)(ask)
        if lacks := [name for name in required(ask.module) if name not in made]:
            raise no_example(ask.module, f"its forward needs {', '.join(lacks)}")
    except ModelError:
        found = tried(ask, _decoder)
        if found is None:
            raise
        made = found
    if "noise" in ask.accepts and hasattr(ask.config, "mask_ratio"):  # which patches are left out is random without it
        patches = cells(ask.config)
        made = {**made, "noise": torch.rand(batch, patches, generator=ask.random)}
    return moved(made, ask.device, ask.dtype)


def moved(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The tensors of a call on a device, floating ones in a dtype where one is given."""
    if torch.is_tensor(value):
        return value.to(device, dtype if value.is_floating_point() else None)
    return {name: moved(one, device, dtype) for name, one in value.items()} if isinstance(value, Mapping) else value


def required(module: nn.Module) -> list[str]:
    """Arguments that a forward call cannot do without."""
    plain = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    every = signature(module.forward).parameters.values()
    return [one.name for one in every if one.default is Parameter.empty and one.kind in plain]


CUT = frozenset({"spatial_shapes", "target_sizes"})
"""Arguments of towers that take pictures cut into patches."""
Recipe = Callable[[Ask], dict[str, Tensor]]


def _recipe(ask: Ask) -> Recipe:
    """How to build inputs, by what the model says it is."""
    if ask.config is None and (size := picture_size(ask.module)) is not None:
        return partial(_sized, size)
    main = getattr(ask.module, "main_input_name", "input_ids")
    family = family_of(ask.config)
    if family is not None and family.example is not None and {"input_ids", "pixel_values"} <= ask.accepts:
        return partial(_with_picture, family.example)
    if {"input_ids", "pixel_values"} <= ask.accepts:
        return _pair
    if main == "input_features" and hasattr(ask.config, "max_source_positions") and hasattr(ask.config, "num_mel_bins"):
        return _speech
    if main == "input_values" and getattr(ask.config, "conv_stride", None):
        return _waves
    if "pixel_values" in ask.accepts and "input_ids" not in ask.accepts and not _moves(ask):
        return lambda ask: {"pixel_values": pictures(ask)}
    words = {"input_ids", "attention_mask", "position_ids", "kwargs"}
    reads = main == "input_ids" or ask.accepts <= words
    if reads and "input_ids" in ask.accepts and not beside_words(ask):
        return _language
    raise no_example(ask.module, f"its forward takes {', '.join(sorted(ask.accepts)) or 'nothing by name'}")


def _moves(ask: Ask) -> bool:
    """Whether what it sees is more than one whole picture an example."""
    return hasattr(ask.config, "num_frames") or bool(CUT & ask.accepts)


def _underlying(module: nn.Module) -> nn.Module:
    """The model inside torch.compile's, PEFT's or TransformerLens' wrapper."""
    if callable(base := getattr(module, "get_base_model", None)):
        return _underlying(base())
    for name in ("_orig_mod", "original_model"):
        if isinstance(inner := getattr(module, name, None), nn.Module):
            return _underlying(inner)
    return module


def _sized(size: tuple[int, int, int], ask: Ask) -> dict[str, Tensor]:
    """Noise for a tower of timm's kind, under the name that it calls its pictures."""
    return {first_argument(ask.module): ask.noise(ask.batch, *size)}


def first_argument(module: nn.Module) -> str:
    """What a module calls what it is given first."""
    return next(iter(signature(module.forward).parameters))


def _language(ask: Ask) -> dict[str, Tensor]:
    """Words alone, with a decoder's where there is one."""
    ids, mask = ask.stack([ask.draw(count) for count in ask.lengths(ask.length)], ask.length)
    made = {"input_ids": ids}
    if "attention_mask" in ask.accepts:
        made["attention_mask"] = mask
    if "decoder_input_ids" in ask.accepts:
        return made | _decoder(ask)
    return made | _positions(ask, mask)


def _positions(ask: Ask, mask: Tensor) -> dict[str, Tensor]:
    """Positions that start at the first word, where generation would pass them too."""
    generates = getattr(ask.module, "can_generate", lambda: False)()
    if ask.padding != "left" or not generates or "position_ids" not in ask.accepts:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def _decoder(ask: Ask) -> dict[str, Tensor]:
    """A decoder row, shorter than the encoder's so that cross-attention is not square."""
    start = next(
        (
            i
            for i in (getattr(ask.config, n, None) for n in ("decoder_start_token_id", "bos_token_id"))
            if i is not None
        ),
        ask.pad,
    )
    longest = max(1, ask.length - 2)
    streams = getattr(getattr(ask.config, "decoder", None), "num_codebooks", 1)  # MusicGen: a row for each of them
    lengths = [count for count in ask.lengths(longest) for _ in range(streams)]
    ids, mask = ask.stack([[start, *ask.draw(count - 1)] for count in lengths], longest)
    made = {"decoder_input_ids": ids}
    masked = "decoder_attention_mask" in ask.accepts and streams == 1
    return made | ({"decoder_attention_mask": mask} if masked else {})


def _speech(ask: Ask) -> dict[str, Tensor]:
    """Log-mel frames, two for each encoder position, and a decoder row."""
    frames = 2 * ask.config.max_source_positions
    made = {"input_features": ask.noise(ask.batch, ask.config.num_mel_bins, frames)}
    if "input_features_mask" in ask.accepts:
        made["input_features_mask"] = torch.ones(ask.batch, frames, dtype=torch.long)
    return made | (_decoder(ask) if "decoder_input_ids" in ask.accepts else {})


def _waves(ask: Ask) -> dict[str, Tensor]:
    """Samples enough for `length` positions of the encoder, and a decoder row where there is one."""
    samples = ask.length
    for kernel, stride in zip(reversed(ask.config.conv_kernel), reversed(ask.config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    made = {"input_values": ask.noise(ask.batch, samples)}
    return made | (_decoder(ask) if "decoder_input_ids" in ask.accepts else {})


def _joined(ask: Ask) -> dict[str, Tensor]:
    """Words and a picture, for a model that no record describes; words alone where its config says it sees none."""
    if getattr(ask.config, "vision_config", ask) is None and not any(
        getattr(one, "image_size", None) for one in with_inner(ask.config)
    ):
        return _language(ask)
    made = joined(ask, _decoder)
    if made is None:
        raise no_example(ask.module, "it takes words and pixels, and interp does not know how it joins them")
    return made


def _pair(ask: Ask) -> dict[str, Tensor]:
    """A caption and an image that are compared, not joined; a caption ends with the id it is pooled at."""
    vision = getattr(ask.config, "vision_config", None)
    if not hasattr(ask.module, "logit_scale") or not hasattr(vision, "image_size"):
        return _joined(ask)
    made = _language(ask)
    end = getattr(ask.text, "eos_token_id", None)
    if isinstance(end, int) and end < ask.text.vocab_size and "attention_mask" in made:
        last = made["attention_mask"].cumsum(-1).argmax(-1)
        made["input_ids"][torch.arange(ask.batch), last] = end
    return made | {"pixel_values": pixels_for(ask, vision, ask.batch)}


def _with_picture(show: Callable[[Ask], Picture], ask: Ask) -> dict[str, Tensor]:
    """Words, an image, words."""
    if getattr(ask.config, "image_token_id", None) is None:
        raise no_example(ask.module, "its config.image_token_id is not set, so no position can be the image")
    picture = show(ask)
    rows = [_around(picture, ask.draw(count)) for count in ask.lengths(ask.length)]
    ids, mask = ask.stack(rows, ask.length + len(picture.ids))
    return {"input_ids": ids, "attention_mask": mask, **picture.tensors, **picture.extra(ask, ids, mask)}


def _around(picture: Picture, words: list[int]) -> list[int]:
    before = 0 if picture.first else len(words) // 2
    return words[:before] + picture.ids + words[before:]
