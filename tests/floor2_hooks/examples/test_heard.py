"""Made-up calls for models that hear, read boxes or follow series: the model's own forward takes them."""

from __future__ import annotations

import pytest
import torch

from interp.hooks.examples.example import example
from interp.hooks.examples.heard import beside_words
from interp.hooks.pictures.asked import Ask
from interp.zoo.every import build

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = {"input_ids": (2, 8), "attention_mask": (2, 8)}
BESIDE: dict[str, dict[str, tuple[int, ...]]] = {
    "bros": {**WORDS, "bbox": (2, 8, 4)},
    "clap": {**WORDS, "input_features": (2, 1, 64, 64)},
    "informer": {
        "past_values": (2, 15),
        "past_time_features": (2, 15, 0),
        "past_observed_mask": (2, 15),
        "future_values": (2, 4),
        "future_time_features": (2, 4, 0),
    },
    "kyutai_speech_to_text": {"input_ids": (2, 8, 3), "attention_mask": (2, 8)},
    "layoutlm": WORDS,
    "mimi_decoder": {"latents": (2, 32, 16)},
    "musicgen": {**WORDS, "decoder_input_ids": (4, 6)},
    "pe_audio": {**WORDS, "input_values": (2, 1, 4000)},
    "voxtral_realtime": {**WORDS, "input_features": (2, 16, 64)},
}
"""What each type is called with in two rows: bros and its like refuse words alone, layoutlm takes them."""


@pytest.mark.parametrize("model_type", BESIDE)
def test_the_forward_takes_what_is_made_up(model_type: str) -> None:
    module = build(model_type)
    call = example(module, batch=2)
    assert {name: tuple(x.shape) for name, x in call.items()} == BESIDE[model_type]
    with torch.no_grad():
        module(**call)


def test_frames_that_are_heard_come_with_their_mask_where_one_is_named() -> None:
    module = build("audioflamingo3_encoder")
    call = example(module, batch=2)
    assert tuple(call["input_features"].shape[::2]) == tuple(call["input_features_mask"].shape)
    with torch.no_grad():
        module(**call)


def test_a_model_whose_words_stand_for_sound_is_asked_for_words_alone() -> None:
    assert not beside_words(Ask(build("qwen2_audio"), 1, 8, None, torch.Generator()))
    assert not beside_words(Ask(build("gpt2"), 1, 8, None, torch.Generator()))
    assert beside_words(Ask(build("pe_audio"), 1, 8, None, torch.Generator()))
