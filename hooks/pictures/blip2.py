"""BLIP-2 and InstructBLIP: as many tokens a picture as the Q-Former has queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.hooks.pictures.asked import Ask, Picture, pixels_for, placeholders
from interp.hooks.pictures.grids import tokens
from interp.hooks.pictures.record import Grids, Text, VisionLanguage, each, register


def _queries(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    return each(tokens(config.num_query_tokens, "query"), kwargs.get("pixel_values"), rows)


def _blip2(ask: Ask) -> Picture:
    tensors = {"pixel_values": pixels_for(ask, ask.config.vision_config, ask.batch)}
    return Picture(placeholders(ask, ask.config.num_query_tokens), tensors, first=True)


def _instructblip(ask: Ask) -> Picture:
    """As BLIP-2, and the Q-Former reads an instruction too, of its own vocabulary and filled up on the right."""
    picture = _blip2(ask)
    vocabulary = ask.config.qformer_config.vocab_size
    ids = torch.randint(vocabulary // 2, vocabulary, (ask.batch, ask.length), generator=ask.random)
    mask = torch.arange(ask.length) < torch.tensor(ask.lengths(ask.length))[:, None]
    words = ids.masked_fill(~mask, ask.config.qformer_config.pad_token_id)
    picture.tensors.update(qformer_input_ids=words, qformer_attention_mask=mask.long())
    return picture


register(VisionLanguage(("blip-2",), images=_queries, example=_blip2, implicit=True, in_front=True, by_mask=True))
register(
    VisionLanguage(
        ("instructblip",), images=_queries, example=_instructblip, implicit=True, in_front=True, by_mask=True
    )
)
