"""Minimal valid inputs for a model nobody gave us inputs for: what the first traced call and the self-checks run on.

Idea: sizes, token ids and counts are read from the config, never from a checkpoint's name, so a tiny random model and
the released one go the same way. Language models get random words, image towers noise of the size they expect, models
of both one image per row between words, encoder-decoders a shorter decoder row. Padded batches have rows of unlike
length. Cost: no forward pass. Limits: the words mean nothing; one image per row, no video; a model that joins images
and words in a way not listed in `PICTURES` is refused rather than guessed at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.errors import InputsError, ModelError


def example(
    module: nn.Module, *, batch: int = 1, length: int = 8, padding: str | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Keyword arguments for one forward call; `length` counts words, image tokens come on top."""
    if batch < 1 or length < 1:
        raise InputsError(f"an example needs at least one row and one word, got batch={batch}, length={length}.")
    if padding not in (None, "left", "right"):
        raise InputsError(f"padding is None, 'left' or 'right', got {padding!r}.")
    ask = Ask(_underlying(module), batch, length, padding, torch.Generator().manual_seed(seed))
    made = _recipe(ask)(ask)
    return {
        name: tensor.to(ask.device, ask.dtype if tensor.is_floating_point() else None) for name, tensor in made.items()
    }


@dataclass(frozen=True, eq=False)
class Ask:
    """What is wanted, and of whom."""

    module: nn.Module
    batch: int
    length: int
    padding: str | None
    random: torch.Generator

    @cached_property
    def config(self) -> Any:
        return getattr(self.module, "config", None)

    @cached_property
    def text(self) -> Any:
        """The config of the language side."""
        inner = getattr(self.config, "get_text_config", None)
        return inner() if inner is not None else self.config

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The arguments forward names."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    @property
    def device(self) -> torch.device:
        """Where the first weight lies that lies anywhere; offloaded ones lie on meta."""
        return next((p.device for p in self.module.parameters() if p.device.type != "meta"), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @cached_property
    def words(self) -> Tensor:
        """Ids that are plain words: none that a config gives a special meaning."""
        vocabulary = getattr(self.text, "vocab_size", None) or _embedding(self.module).num_embeddings
        special = torch.tensor(sorted(_special(self.config) | _special(self.text)), dtype=torch.long)
        ids = torch.arange(vocabulary)
        return ids[~torch.isin(ids, special)]

    @property
    def pad(self) -> int:
        return next(
            (p for p in (getattr(c, "pad_token_id", None) for c in (self.text, self.config)) if p is not None), 0
        )

    def noise(self, *shape: int) -> Tensor:
        """Pixels or mel bins."""
        return torch.randn(shape, generator=self.random)

    def draw(self, count: int) -> list[int]:
        """So many random words."""
        return self.words[torch.randint(len(self.words), (count,), generator=self.random)].tolist()

    def lengths(self, longest: int) -> list[int]:
        """Words per row: all the same, or when padded unlike, with one padded row even in a batch of one."""
        if self.padding is None:
            return [longest] * self.batch
        step = max(1, longest // 4)
        return [max(1, longest - step * ((row + (self.batch == 1)) % 3)) for row in range(self.batch)]

    def stack(self, rows: Sequence[list[int]], longest: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of rows filled up to the longest on the side that was asked for."""
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if self.padding == "left" else slice(0, len(row))
            ids[index, where] = torch.tensor(row)
            mask[index, where] = 1
        return ids, mask


Recipe = Callable[[Ask], dict[str, Tensor]]


def _recipe(ask: Ask) -> Recipe:
    """How to build inputs, by what the model says it is."""
    main = getattr(ask.module, "main_input_name", "input_ids")
    if getattr(ask.config, "model_type", None) in PICTURES and {"input_ids", "pixel_values"} <= ask.accepts:
        return _with_picture
    if {"input_ids", "pixel_values"} <= ask.accepts:
        return _pair
    if main == "input_features" and hasattr(ask.config, "max_source_positions") and hasattr(ask.config, "num_mel_bins"):
        return _speech
    if main == "pixel_values" and "pixel_values" in ask.accepts and hasattr(ask.config, "image_size"):
        return lambda ask: {"pixel_values": _pixels(ask, ask.config, ask.batch)}
    if main == "input_ids" and "input_ids" in ask.accepts:
        return _language
    raise _unknown(ask.module, f"its forward takes {', '.join(sorted(ask.accepts)) or 'nothing by name'}")


def _unknown(module: nn.Module, why: str) -> ModelError:
    kind = getattr(getattr(module, "config", None), "model_type", None)
    called = type(module).__name__ + (f" (model type {kind!r})" if kind else "")
    return ModelError(
        f"no example inputs are known for {called}: {why}. Pass example={{name: tensor, ...}}, a valid call."
    )


def _underlying(module: nn.Module) -> nn.Module:
    """The model inside torch.compile's, PEFT's or TransformerLens' wrapper."""
    if callable(base := getattr(module, "get_base_model", None)):
        return _underlying(base())
    for name in ("_orig_mod", "original_model"):
        if isinstance(inner := getattr(module, name, None), nn.Module):
            return _underlying(inner)
    return module


def _embedding(module: nn.Module) -> nn.Embedding:
    found = next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)
    if found is None:
        raise _unknown(module, "it has neither config.vocab_size nor an nn.Embedding to read the vocabulary from")
    return found


def _special(config: Any) -> set[int]:
    """Every id that a config names."""
    found: set[int] = set()
    for name, value in getattr(config, "__dict__", {}).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(i, int)}
    return found


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
    ids, mask = ask.stack([[start, *ask.draw(count - 1)] for count in ask.lengths(longest)], longest)
    made = {"decoder_input_ids": ids}
    return made | ({"decoder_attention_mask": mask} if "decoder_attention_mask" in ask.accepts else {})


def _speech(ask: Ask) -> dict[str, Tensor]:
    """Log-mel frames, two for each encoder position, and a decoder row."""
    made = {"input_features": ask.noise(ask.batch, ask.config.num_mel_bins, 2 * ask.config.max_source_positions)}
    return made | (_decoder(ask) if "decoder_input_ids" in ask.accepts else {})


def _pair(ask: Ask) -> dict[str, Tensor]:
    """A caption and an image that are compared, not joined; a caption ends with the id it is pooled at."""
    vision = getattr(ask.config, "vision_config", None)
    if not hasattr(ask.module, "logit_scale") or not hasattr(vision, "image_size"):
        raise _unknown(ask.module, "it takes words and pixels, and how it joins them is not listed")
    made = _language(ask)
    end = getattr(ask.text, "eos_token_id", None)
    if isinstance(end, int) and end < ask.text.vocab_size and "attention_mask" in made:
        last = made["attention_mask"].cumsum(-1).argmax(-1)
        made["input_ids"][torch.arange(ask.batch), last] = end
    return made | {"pixel_values": _pixels(ask, vision, ask.batch)}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image's place in a row: the ids that stand for it, and what the image tower is given."""

    ids: list[int]
    tensors: dict[str, Tensor]
    first: bool = False
    """Whether the image opens the row instead of standing between words."""
    extra: Callable[[Ask, Tensor, Tensor], dict[str, Tensor]] = field(default=lambda ask, ids, mask: {})
    """Further arguments, from the ids and the mask of the finished rows."""


def _with_picture(ask: Ask) -> dict[str, Tensor]:
    """Words, an image, words."""
    if getattr(ask.config, "image_token_id", None) is None:
        raise _unknown(ask.module, "its config.image_token_id is not set, so no position can stand for the image")
    picture = PICTURES[ask.config.model_type](ask)
    rows = [_around(picture, ask.draw(count)) for count in ask.lengths(ask.length)]
    ids, mask = ask.stack(rows, ask.length + len(picture.ids))
    return {"input_ids": ids, "attention_mask": mask, **picture.tensors, **picture.extra(ask, ids, mask)}


def _around(picture: Picture, words: list[int]) -> list[int]:
    before = 0 if picture.first else len(words) // 2
    return words[:before] + picture.ids + words[before:]


def _sides(value: Any) -> tuple[int, int]:
    """Height and width of a size given as one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _pixels(ask: Ask, vision: Any, *lead: int) -> Tensor:
    """Noise of the size a tower expects, [*lead, channel, height, width]."""
    return ask.noise(*lead, getattr(vision, "num_channels", 3), *_sides(vision.image_size))


def _grid(vision: Any) -> tuple[int, int]:
    """Rows and columns of patches."""
    (height, width), (down, across) = _sides(vision.image_size), _sides(vision.patch_size)
    return height // down, width // across


def _cells(vision: Any) -> int:
    rows, columns = _grid(vision)
    return rows * columns


def _placeholders(ask: Ask, count: int) -> list[int]:
    return [ask.config.image_token_id] * count


def _llava_cells(config: Any) -> int:
    """Features of one view: "default" drops the first, which is the class token where the tower has one."""
    has_class = config.vision_config.model_type == "clip_vision_model"
    return _cells(config.vision_config) + has_class - (config.vision_feature_select_strategy == "default")


def _llava(ask: Ask) -> Picture:
    pixels = _pixels(ask, ask.config.vision_config, ask.batch)
    return Picture(_placeholders(ask, _llava_cells(ask.config)), {"pixel_values": pixels})


def _llava_next(ask: Ask) -> Picture:
    """The smallest oblong resolution: one whole view, then its tiles row by row, each row closed by a newline."""
    vision = ask.config.vision_config
    points = sorted(ask.config.image_grid_pinpoints, key=lambda point: (point[0] == point[1], point[0] * point[1]))
    height, width = points[0]
    tiles = (height // vision.image_size) * (width // vision.image_size)
    rows, columns = height // vision.patch_size, width // vision.patch_size
    pixels = _pixels(ask, vision, ask.batch, 1 + tiles)
    sizes = torch.tensor([[height, width]] * ask.batch)
    count = _llava_cells(ask.config) + rows * (columns + 1)
    return Picture(_placeholders(ask, count), {"pixel_values": pixels, "image_sizes": sizes})


def _qwen(ask: Ask) -> Picture:
    """An oblong grid of 2 x 3 merged cells, one frame."""
    vision = ask.config.vision_config
    merge = vision.spatial_merge_size
    rows, columns = 2 * merge, 3 * merge
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tensors = {
        "pixel_values": ask.noise(ask.batch * rows * columns, values),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * ask.batch),
    }
    ids = [ask.config.vision_start_token_id, *_placeholders(ask, 6), ask.config.vision_end_token_id]
    return Picture(ids, tensors, extra=lambda ask, ids, mask: {"mm_token_type_ids": _is_image(ask, ids)})


def _is_image(ask: Ask, ids: Tensor) -> Tensor:
    return (ids == ask.config.image_token_id).long()


def _internvl(ask: Ask) -> Picture:
    count = int(_cells(ask.config.vision_config) * ask.config.downsample_ratio**2)
    return Picture(_placeholders(ask, count), {"pixel_values": _pixels(ask, ask.config.vision_config, ask.batch)})


def _paligemma(ask: Ask) -> Picture:
    """The image opens the row, and the whole row is prefix (type 0), seen both ways."""
    vision = ask.config.vision_config
    tensors = {"pixel_values": _pixels(ask, vision, ask.batch)}
    ids = _placeholders(ask, _cells(vision))
    return Picture(ids, tensors, first=True, extra=lambda ask, ids, mask: {"token_type_ids": torch.zeros_like(ids)})


def _idefics(ask: Ask) -> Picture:
    """One tile per row."""
    vision = ask.config.vision_config
    count = _cells(vision) // ask.config.scale_factor**2
    return Picture(_placeholders(ask, count), {"pixel_values": _pixels(ask, vision, ask.batch, 1)})


def _gemma3(ask: Ask) -> Picture:
    config = ask.config
    ids = [config.boi_token_id, *_placeholders(ask, config.mm_tokens_per_image), config.eoi_token_id]
    tensors = {"pixel_values": _pixels(ask, config.vision_config, ask.batch)}
    return Picture(ids, tensors, extra=lambda ask, ids, mask: {"token_type_ids": _is_image(ask, ids)})


def _blip2(ask: Ask) -> Picture:
    tensors = {"pixel_values": _pixels(ask, ask.config.vision_config, ask.batch)}
    return Picture(_placeholders(ask, ask.config.num_query_tokens), tensors, first=True)


def _instructblip(ask: Ask) -> Picture:
    """As BLIP-2, and the Q-Former reads an instruction too, of its own vocabulary and filled up on the right."""
    picture = _blip2(ask)
    vocabulary = ask.config.qformer_config.vocab_size
    ids = torch.randint(vocabulary // 2, vocabulary, (ask.batch, ask.length), generator=ask.random)
    mask = torch.arange(ask.length) < torch.tensor(ask.lengths(ask.length))[:, None]
    words = ids.masked_fill(~mask, ask.config.qformer_config.pad_token_id)
    picture.tensors.update(qformer_input_ids=words, qformer_attention_mask=mask.long())
    return picture


def _mllama(ask: Ask) -> Picture:
    """One token; rows differ in how many tiles their image has, and words before the image do not see it."""
    vision = ask.config.vision_config
    shapes = [vision.supported_aspect_ratios[row % 2 % len(vision.supported_aspect_ratios)] for row in range(ask.batch)]
    tiles = torch.tensor([rows * columns for rows, columns in shapes])
    present = (torch.arange(vision.max_num_tiles) < tiles[:, None])[:, None]
    ratio = torch.tensor([[1 + vision.supported_aspect_ratios.index(shape)] for shape in shapes])
    pixels = _pixels(ask, vision, ask.batch, 1, vision.max_num_tiles) * present[..., None, None, None]
    tensors = {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": present.long()}

    def crossing(ask: Ask, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        after = _is_image(ask, ids).cumsum(-1).clamp(max=1) * mask
        return {"cross_attention_mask": after[:, :, None, None] * present.long()[:, None]}

    return Picture(_placeholders(ask, 1), tensors, extra=crossing)


PICTURES: dict[str, Callable[[Ask], Picture]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "internvl": _internvl,
    "paligemma": _paligemma,
    "smolvlm": _idefics,
    "idefics3": _idefics,
    "gemma3": _gemma3,
    "blip-2": _blip2,
    "instructblip": _instructblip,
    "mllama": _mllama,
}
