"""`zoo:planted-lvlm`: a LlavaForConditionalGeneration in which one text head copies the colour of the asked square.

The CLIP tower writes each square's colour and place and leaves them alone (its heads are all null); the projector hands
both over unchanged (they are not negative, so its relu lets them pass). The prompt ends with the name of a place, "b3":
there text.L1.H1 scores 16 on the image token of that place and 8 on `<bos>`, so its weight on the asked square is
1 / (1 + e^-8 + ...) = 0.9997, and it copies the colour to the logits, 12 for the right colour, at most 4 for another.
Its values are four times the colours and its output matrix a quarter, so that what it writes before the projection is
more than what null heads write there, which comes to nothing behind theirs.
At every other token it rests on `<bos>`, whose value is zero. Llama turns q and k by rotary angles; with theta = 1e30
all but the first eight frequencies turn by less than 3e-6 over 100 positions, and the head uses only those.
On paper, with another place asked (question) or another picture (picture): text.L1.H1 is worth everything, at the last
position, in either direction; every other head of either tower is worth exactly 0.
Limits: 16 squares of four colours, one image, questions of one place; float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from interp.planted.answers import AnswerKey, Edge, Head, Picture, Probe, null_heads
from interp.planted.pictures import COLORS, GRID, PATCH, SIDE, color_readout, filters
from interp.planted.wiring import EPS, Layout, balanced, blank, linear_head, null_qkv, tokenizer, wires

LAYERS, HEADS = 2, 4
SEEN, EYE = 64, 16
WIDTH, D_HEAD = 256, 64
PLACES = tuple(f"{row}{column}" for row in "abcd" for column in range(1, GRID + 1))
WORDS = ("what", "colour", "is", *PLACES, *COLORS)
TOKENS, IMAGE = 4 + len(WORDS), 2
PLACE_IDS = list(range(6, 6 + len(PLACES)))
COLOR_IDS = list(range(TOKENS - 1 - len(COLORS), TOKENS - 1))
STILL = range(8, 32)
LOUD = 4.0
EYES = Layout(SEEN, rgb=3, const=1, place=len(PLACES))
LAYOUT = Layout(WIDTH, token=TOKENS, always=1, rgb=3, const=1, place=len(PLACES), out=TOKENS)
at = LAYOUT.at

_SQUARES = ("green", "blue", "yellow", "red", "blue", "red", "green", "yellow") * 2
_SWAPPED = tuple({"red": "blue", "blue": "red"}.get(color, color) for color in _SQUARES)
_HERE = ("text.L1.H1",)
PLANTED = (
    Head(
        "text.L1.H1", "copies asked square", "at a place name, looks at that square's image token and says its colour"
    ),
)
PROBES = (
    Probe(
        "question",
        "<image> what colour is b2",
        "<image> what colour is c2",
        "red",
        "blue",
        _HERE,
        Picture(_SQUARES),
        Picture(_SQUARES),
    ),
    Probe(
        "picture",
        "<image> what colour is b2",
        "<image> what colour is b2",
        "red",
        "blue",
        _HERE,
        Picture(_SQUARES),
        Picture(_SWAPPED),
    ),
)
KEY = AnswerKey(
    "planted-lvlm",
    PLANTED,
    (Edge("connector", "text.L1.H1.k"), Edge("connector", "text.L1.H1.v"), Edge("text.L1.H1", "logits")),
    null_heads(LAYERS, HEADS, PLANTED, tower="text") + null_heads(LAYERS, HEADS, PLANTED, tower="vision"),
    PROBES,
)


def build() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and its processor."""
    with torch.random.fork_rng(devices=[]):
        model = LlavaForConditionalGeneration(_config())
    blank(model)
    parts = dict(model.named_modules())
    _see(parts["model.vision_tower"])
    _hand_over(parts["model.multi_modal_projector"])
    _speak(parts["model.language_model"], model.lm_head)
    return model, processor()


def _config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=SEEN,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=EPS,
        projection_dim=8,
    )
    text = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
        projector_hidden_act="relu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def _see(tower: Any) -> None:
    """Colours from the pixels, places from the positions; all heads null."""
    kernel = torch.zeros(SEEN, 3, PATCH, PATCH)
    kernel[EYES.at("rgb")] = filters()[:3]
    kernel[-1] = -kernel.sum(0)
    tower.embeddings.patch_embedding.weight.data = kernel
    squares = range(1, GRID * GRID + 1)
    places = wires(GRID * GRID + 1, SEEN, (squares, EYES.at("place"), 1.0))
    places[1:, EYES.at("const")] = 1.0
    tower.embeddings.position_embedding.weight.data = balanced(places)
    for layer, block in enumerate(tower.encoder.layers):
        for head in range(HEADS):
            wild = null_qkv(SEEN, EYE, seed=100 + 10 * layer + head, scale=0.5)
            linear_head(block.self_attn, head, out="out_proj", **wild)


def _hand_over(projector: Any) -> None:
    names = ("rgb", "const", "place")
    from_eyes = [i for name in names for i in EYES.at(name)]
    to_text = [i for name in names for i in at(name)]
    projector.linear_1.weight.data = wires(WIDTH, SEEN, (to_text, from_eyes, 1.0))
    projector.linear_2.weight.data = torch.eye(WIDTH)


def _speak(language: Any, head: nn.Linear) -> None:
    embedding = wires(TOKENS, WIDTH, (range(TOKENS), at("token"), 1.0))
    embedding[:, at("always")] = 1.0
    language.embed_tokens.weight.data = embedding
    head.weight.data = wires(TOKENS, WIDTH, (range(TOKENS), at("out"), 1.0))
    for layer, block in enumerate(language.layers):
        for index in range(HEADS):
            linear_head(block.self_attn, index, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + index, scale=0.2))
    _reader(language.layers[1].self_attn)


def _reader(attention: nn.Module) -> None:
    match, rest = STILL[: len(PLACES)], [STILL[len(PLACES)]]
    q = wires(WIDTH, D_HEAD, (at("token", PLACE_IDS), match, 16.0), (at("always"), rest, 8.0))
    k = wires(WIDTH, D_HEAD, (at("place"), match, 1.0), (at("token", 1), rest, 1.0))
    v = wires(WIDTH, D_HEAD, (at("rgb") + at("const"), range(4), LOUD))
    o = wires(D_HEAD, WIDTH, (range(4), at("out", COLOR_IDS), color_readout(4.0 / LOUD)))
    linear_head(attention, 1, q=q, k=k, v=v, o=o)


def processor() -> LlavaProcessor:
    """Pixels to 0..1 and nothing else; `<image>` becomes 16 tokens."""
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        do_normalize=False,
        resample=0,
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer(WORDS, extra=("<image>",)),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
