"""The arguments of a call: made tensors, checked, and sorted into the towers that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError, UnknownPositions
from interp.hooks.pictures.asked import text_config
from interp.hooks.pictures.grids import pixels_in

IDS = {"text": "input_ids", "encoder": "input_ids", "decoder": "decoder_input_ids"}
MASKS = {"text": "attention_mask", "encoder": "attention_mask", "decoder": "decoder_attention_mask"}
MAINS = (
    ("decoder", "decoder_input_ids"), ("text", "input_ids"), ("text", "inputs_embeds"), ("text", "tgt"),
    ("vision", "pixel_values"), ("vision", "pixel_values_videos"), ("encoder", "input_features"),
    ("audio", "input_values"),
)  # fmt: skip
DROPPED = ("past_key_values", "mm_encoder_outputs")
"""What transformers keeps between calls, which says nothing of positions."""
SCALARS = (bool, int, float, str)


def main_tower(call: Mapping[str, Any]) -> str:
    """The tower whose positions are the inputs' positions."""
    for tower, name in MAINS:
        if name in call:
            return tower
    if _only(call, 2) is not None or _only(call, 3) is not None:
        return "text"
    if pixels_in(call) is not None:
        return "vision"
    raise unknown_call(call)


def unknown_call(call: Mapping[str, Any]) -> UnknownPositions:
    """What to say of a call whose positions cannot be told."""
    known = ", ".join(name for _, name in MAINS)
    return UnknownPositions(
        f"cannot tell the positions of a call with {', '.join(call)}; expected one of {known}, "
        "one integer tensor [batch, position], one float tensor [batch, position, d], or one [batch, channel, row, "
        "column]"
    )


def _only(call: Mapping[str, Any], dims: int) -> Tensor | None:
    """The one tensor that can only be ids [batch, position] (or embeddings, of three dimensions) of a plain module."""
    kinds = [value for value in call.values() if isinstance(value, Tensor) and value.dtype != torch.bool]
    fits = [value for value in kinds if value.dim() == dims and value.is_floating_point() == (dims == 3)]
    named = any(name in call for _, name in MAINS)
    return fits[0] if len(fits) == 1 and not named else None


def other_towers(call: Mapping[str, Any]) -> list[str]:
    """The towers other than the main one."""
    main = main_tower(call)
    reads = any(name in call for name in ("input_ids", "input_features", "input_values"))
    found = ["encoder"] if main == "decoder" and reads else []
    pixels = "pixel_values" in call or "pixel_values_videos" in call
    return found + (["vision"] if pixels and main != "vision" else [])


def main_ids(call: Mapping[str, Any], tower: str) -> Tensor | None:
    """The ids a tower reads, if it reads ids."""
    found = call.get(IDS[tower]) if tower in IDS else None
    return _only(call, 2) if found is None and tower == "text" else found


def main_embeds(call: Mapping[str, Any]) -> Tensor | None:
    """The vectors a text tower reads instead of ids."""
    found = call.get("inputs_embeds", call.get("tgt"))
    return _only(call, 3) if found is None else found


def checked(kwargs: Mapping[str, Any], config: Any = None) -> dict[str, Any]:
    """The arguments as tensors (and plain scalars), refused where a model would fail late or answer wrongly."""
    if not kwargs:
        raise InputsError("no arguments: expected what the model is called with, such as input_ids")
    call = {name: _tensor(name, value) for name, value in kwargs.items() if value is not None and name not in DROPPED}
    reads = not {"pixel_values", "past_values"} & call.keys()  # decoders of detectors and series read no words
    if getattr(config, "is_encoder_decoder", False) and reads and "decoder_input_ids" not in call:
        raise InputsError("an encoder-decoder also needs decoder_input_ids (prepare(...) adds the start token)")
    for tower in ("text", "decoder"):
        ids, mask = main_ids(call, tower), call.get(MASKS[tower])
        if ids is not None:
            check_ids(IDS[tower], ids, config)
            if mask is not None:
                check_mask(MASKS[tower], mask, ids)
    return call


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, (Tensor, Mapping, *SCALARS)):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputsError(
            f"{name} cannot be made a tensor ({error}); rows of unequal length go through prepare"
        ) from None


def check_ids(name: str, ids: Tensor, config: Any = None) -> None:
    """Refuse ids of the wrong type, shape or range."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputsError(f"{name} must be int64 or int32, as embeddings are looked up with; got {ids.dtype}")
    if ids.dim() != 2:
        raise InputsError(f"{name} must be [batch, position], got shape {tuple(ids.shape)}")
    if not len(ids):
        raise InputsError(f"{name} is an empty batch")
    if not ids.shape[1]:
        raise InputsError(f"{name} has no tokens: give a text of at least one token")
    vocab = vocabulary(config)
    if ids.is_meta or vocab is None:
        return
    images = {getattr(config, f"{kind}_token_{end}", None) for kind in ("image", "video") for end in ("id", "index")}
    own = torch.isin(ids, torch.tensor([i for i in images if i is not None], dtype=ids.dtype, device=ids.device))
    bad = ((ids < 0) | (ids >= vocab)) & ~own
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise InputsError(f"{name}[{row}, {column}] = {int(ids[row, column])} is outside the vocabulary of {vocab} ids")


def vocabulary(config: Any) -> int | None:
    """How many ids the text model knows."""
    size = getattr(text_config(config), "vocab_size", None)
    return int(size) if isinstance(size, int) else None


def check_mask(name: str, mask: Any, ids: Tensor) -> None:
    """Refuse masks that are not one number per token, and rows that are padding throughout."""
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputsError(f"{name} must have the shape of the ids, {tuple(ids.shape)}, got {shape}")
    empty = (~mask.bool().any(1)).nonzero().flatten().tolist() if not mask.is_meta else []
    if empty:
        raise InputsError(f"row {empty[0]} of {name} is all padding: leave such rows out of the batch")


def flat(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with those inside a dict next to the others, under both names: "added_cond_kwargs/time_ids"."""
    found: dict[str, Any] = {}
    for name, value in call.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}/{own}": one for own, one in inner.items()}
    return found


def nested(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` was given."""
    made: dict[str, Any] = {}
    for name, value in found.items():
        *above, own = name.split("/")
        place = made
        for one in above:
            place = place.setdefault(one, {})
        place[own] = value
    return made
