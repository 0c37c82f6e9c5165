"""Calls for models that take something besides words: sound or series of numbers, in the shapes they have elsewhere.

Words come alone first: many models that can hear need no sound. A sound is frames of a spectrogram, bins first or last,
or a wave; boxes say where a word is on its page; streams of codes are read together with the words; a series has the
past that its lags reach into, and a future to be told. Which of them a model takes is tried on the model (`tried`).
Limits: noise; a model that compares words with a sound is given one sound a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interp.hooks.examples.sizes import number
from interp.hooks.pictures.asked import Ask

BESIDE = frozenset({"bbox", "input_features", "input_values"})
"""What may be given besides words."""
FRAMES, WAVES, LATENTS = 64, 4000, 16
Call = dict[str, Tensor]


def beside_words(ask: Ask) -> bool:
    """Whether words alone may not be enough: no token marks what the model takes besides them."""
    named = ("audio_token_id", "audio_token_index", "speech_token_id")
    streams = isinstance(getattr(ask.config, "audio_bos_token_id", None), int) and _streams(ask.config)
    if streams and "input_values" not in ask.accepts:
        return True
    return bool(BESIDE & ask.accepts) and not any(isinstance(getattr(ask.config, n, None), int) for n in named)


def heard(ask: Ask) -> Iterator[Call]:
    """Calls to be tried, the plainest first."""
    if "input_ids" in ask.accepts:
        yield from _with_words(ask)
    if "past_values" in ask.accepts and getattr(ask.config, "lags_sequence", None):
        yield from _series(ask)
    for name in sorted({"latents"} & ask.accepts):
        for width in ("hidden_size", "latent_dim"):
            if isinstance(size := getattr(ask.config, width, None), int):
                yield {name: ask.noise(ask.batch, size, LATENTS)}


def _with_words(ask: Ask) -> Iterator[Call]:
    ids, mask = ask.stack([ask.draw(count) for count in ask.lengths(ask.length)], ask.length)
    words = {"input_ids": ids} | ({"attention_mask": mask} if "attention_mask" in ask.accepts else {})
    yield words
    if "bbox" in ask.accepts:
        yield words | {"bbox": torch.ones(*ids.shape, 4, dtype=torch.long)}
    for name, sound in _sounds(ask):
        yield words | {name: sound}
    if codes := _streams(ask.config):
        rows = [torch.tensor([ask.draw(ask.length) for _ in range(codes)]) for _ in range(ask.batch)]
        yield words | {"input_ids": torch.cat([ids[:, None], torch.stack(rows)], 1).transpose(1, 2)}


def _sounds(ask: Ask) -> Iterator[tuple[str, Tensor]]:
    b, bins = ask.batch, number(ask.config, "num_mel_bins", "feature_size", otherwise=80)
    if "input_features" in ask.accepts:
        for shape in ((b, bins, FRAMES), (b, FRAMES, bins), (b, 1, FRAMES, bins)):
            yield "input_features", ask.noise(*shape)
    if "input_values" in ask.accepts:
        yield "input_values", ask.noise(b, 1, WAVES)
        yield "input_values", ask.noise(b, WAVES)


def _series(ask: Ask) -> Iterator[Call]:
    """Past and future values, all of them observed, with as many features of time as the config counts."""
    config, b = ask.config, ask.batch
    future, features = config.prediction_length, int(config.num_time_features)
    past = (config.context_length or future) + max(config.lags_sequence)
    yield {
        "past_values": ask.noise(b, past),
        "past_time_features": ask.noise(b, past, features),
        "past_observed_mask": torch.ones(b, past),
        "future_values": ask.noise(b, future),
        "future_time_features": ask.noise(b, future, features),
    }


def _streams(config: Any) -> int:
    """Streams of codes that are read at each position together with the words."""
    count = getattr(config, "num_codebooks", None)
    return count if isinstance(count, int) else 0
