"""A picture together with words, for a model that no record describes: layouts of pictures are tried, and the model
says how many tokens it makes of one.

Pictures come whole, one or several an example, with a mask of pixels or of pictures, with their sizes, or cut into
patches with the grid they were cut by. Where a token marks an image, the count of such tokens is what
`get_image_features` gives, or what the model's own error says that it has. Where none does, words and a picture are
side by side. A call is taken where the model's own forward goes through with it.
Cost: a forward pass a candidate. Limits: noise, one picture an example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor

from interp.hooks.examples.sizes import Cut, cut_of, number, pictures, with_inner
from interp.hooks.pictures.asked import Ask, sides

STOPS = (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises on inputs that are not its own."""
Call = dict[str, Tensor]
LARGER = 4
"""Times the size that a config says, for models that make a picture smaller again and again."""
FEATURES = re.compile(r"features:?\s*\[?(?:torch\.Size\(\[)?(\d+)")
"""How a model that counts says how many features it has for its image tokens."""


def goes(ask: Ask, call: Callable[..., Any], kwargs: Mapping[str, Tensor]) -> Any:
    """What a call gives; None where the model does not take it."""
    found = _attempt(ask, call, kwargs)
    return None if isinstance(found, Exception) else found


def _attempt(ask: Ask, call: Callable[..., Any], kwargs: Mapping[str, Tensor]) -> Any:
    moved = {k: x.to(ask.device, ask.dtype if x.is_floating_point() else None) for k, x in kwargs.items()}
    try:
        with torch.no_grad():
            return call(**moved)
    except STOPS as why:
        return why


def image_token(config: Any) -> int | None:
    """The id that marks an image in a text."""
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((one for one in found if isinstance(one, int)), None)


def joined(ask: Ask, decoder: Callable[[Ask], Call]) -> Call | None:
    """The first call with words and a picture that the model takes; `decoder` makes a decoder's row."""
    beside = decoder(ask) if "decoder_input_ids" in ask.accepts else {}
    token = image_token(ask.config)
    looks = (getattr(part, "get_image_features", None) for part in ask.module.modules())
    look = next((one for one in looks if one is not None), None)
    if token is not None and look is not None:
        for tensors in layouts(ask, set(signature(look).parameters)):
            features = goes(ask, look, tensors)
            count = 0 if features is None else _tokens_in(features)
            call = _row(ask, token, count, tensors) | beside
            if count and goes(ask, ask.module, call) is not None:
                return call
    for tensors in layouts(ask, set(ask.accepts)):
        for call in _unasked(ask, token, tensors, beside):
            if goes(ask, ask.module, call) is not None:
                return call
    return None


def _unasked(ask: Ask, token: int | None, tensors: Call, beside: Call) -> Iterator[Call]:
    """With as many image tokens as the model says it has features for, which it may count by number; without any, where
    none marks an image."""
    if token is None:
        count = (
            number(ask.config, "latent_query_num", otherwise=1) if "image_embeds_position_mask" in ask.accepts else 0
        )
        yield _row(ask, ask.draw(1)[0], count, tensors) | beside
        return
    once = _row(ask, token, 1, tensors) | beside
    said = _attempt(ask, ask.module, once)
    counted = FEATURES.search(str(said)) if isinstance(said, ValueError) else None
    if counted is not None:
        features = int(counted[1]) // ask.batch
        for count in (features, features // number(ask.text, "hidden_size", "d_model", otherwise=1)):
            yield _row(ask, token, max(1, count), tensors) | beside
    elif not isinstance(said, Exception):
        yield once


def _row(ask: Ask, token: int, count: int, tensors: Call) -> Call:
    """Words, image tokens, words, and what goes with them by position."""
    random = torch.Generator().manual_seed(ask.random.initial_seed())
    ask = replace(ask, random=random)  # the same words in every candidate
    rows = []
    for words in map(ask.draw, ask.lengths(ask.length)):
        middle = len(words) // 2
        rows.append([*words[:middle], *[token] * count, *words[middle:]])
    ids, mask = ask.stack(rows, ask.length + count)
    made = {"input_ids": ids, "attention_mask": mask, **tensors}
    if "bbox" in ask.accepts:
        made["bbox"] = torch.ones(*ids.shape, 4, dtype=torch.long)
    if count and "mm_token_type_ids" in ask.accepts:
        made["mm_token_type_ids"] = (ids == token).long()
    if "image_attention_mask" in ask.accepts and tensors["pixel_values"].ndim == 5:
        made["image_attention_mask"] = torch.ones(*ids.shape, 1, dtype=torch.long)
    if "image_embeds_position_mask" in ask.accepts:
        made["image_embeds_position_mask"] = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            start = int(mask[index].argmax()) + (len(row) - count) // 2
            made["image_embeds_position_mask"][index, start : start + count] = 1
    return {name: value for name, value in made.items() if name in ask.accepts}


def layouts(ask: Ask, named: set[str]) -> Iterator[Call]:
    """One picture an example in every layout that arguments of these names have elsewhere."""
    whole, cut = pictures(ask), cut_of(ask)
    height, width = whole.shape[2:]
    grids = sorted({"image_grid_thw", "grid_thw", "image_grid_hw", "image_grid_hws"} & named)
    for name in grids:
        merges = (
            {"image_merge_sizes": torch.tensor([cut.rows // 2] * ask.batch)} if "image_merge_sizes" in named else {}
        )
        for pixels in _cut(ask, cut):
            yield {"pixel_values": pixels, name: cut.sizes(three=name.endswith("thw")), **merges}
    if "spatial_shapes" in named:
        shapes = {"spatial_shapes": cut.sizes(three=False)}
        every = {"pixel_attention_mask": torch.ones(ask.batch, cut.cells, dtype=torch.long)}
        yield {"pixel_values": ask.noise(ask.batch, cut.cells, cut.values), **shapes, **every}
    if "target_sizes" in named:
        for rows, cells in dict.fromkeys(((ask.batch, cut.cells), (1, ask.batch * cut.cells))):
            strip = ask.noise(rows, cut.channels, cut.side, cells * cut.side)
            yield {"pixel_values": strip, "target_sizes": cut.sizes(three=False)}
    if "pixel_position_ids" in named:
        side = 2 * number(ask.config, "pooling_kernel_size", otherwise=1)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1).expand(ask.batch, -1, -1)
        yield {"pixel_values": ask.noise(ask.batch, side**2, cut.values), "pixel_position_ids": places}
    sizes = {"image_sizes": torch.tensor([[height, width]] * ask.batch)} if "image_sizes" in named else {}
    fine = _finer(ask) if "high_res_pixel_values" in named else {}
    for pixels in (whole, whole[:, None]):
        yield {"pixel_values": pixels, **sizes, **fine}
        for mask in sorted({"pixel_mask", "pixel_attention_mask"} & named):
            for shape in ((*pixels.shape[:-3], height, width), (ask.batch, 1)):
                yield {"pixel_values": pixels, mask: torch.ones(*shape, dtype=torch.bool), **sizes}
    yield {"pixel_values": ask.noise(ask.batch, cut.cells, cut.values)}
    yield {"pixel_values": ask.noise(ask.batch * cut.cells, cut.values)}
    yield {"pixel_values": ask.noise(ask.batch, whole.shape[1], LARGER * height, LARGER * width)}


def _cut(ask: Ask, cut: Cut) -> Iterator[Tensor]:
    """Patches of all pictures, one after the other: flat, as little pictures, pixel by pixel."""
    every = ask.batch * cut.cells
    yield ask.noise(every, cut.values)
    yield ask.noise(every, 2 * cut.values)  # a still picture as two frames
    yield ask.noise(every, cut.channels, cut.side, cut.side)
    yield ask.noise(every * cut.side**2, cut.channels)


def _finer(ask: Ask) -> Call:
    """The picture again, of the size that a second tower takes."""
    vision = next((c for c in with_inner(ask.config) if hasattr(c, "high_res_vision_config")), None)
    size = sides(getattr(getattr(vision, "high_res_vision_config", None), "image_size", 64))
    return {"high_res_pixel_values": ask.noise(ask.batch, 3, *size)}


def _tokens_in(features: Any) -> int:
    """How many tokens a first picture makes."""
    found = getattr(features, "pooler_output", features)
    found = getattr(features, "last_hidden_state", None) if found is None else found
    while isinstance(found, (list, tuple)) and found:
        found = found[0]
    if not torch.is_tensor(found) or found.ndim < 2:
        return 0
    return prod((found[0] if found.ndim > 2 else found).shape[:-1])
