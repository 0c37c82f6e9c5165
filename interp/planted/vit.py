"""`zoo:planted-vit`: a ViTForImageClassification whose class token reads the marked square through one head.

The patch embedding writes each square's colour and mark (`pictures.filters`); in L1.H2 the class token scores 10 on a
mark and 0 elsewhere, so its weight on the marked square is 1 / (1 + 16 e^-10) = 0.9993, and it copies the colour found
there to the class logits, which are 12 for the right colour and at most 4 for another. The other seven heads are null.
Clean and corrupt pictures have the same squares and another one marked. On paper: L1.H2 is worth everything under any
method in either direction at the class token's position (the logits are linear in its z); nulls are worth exactly 0.
Limits: 32 x 32 pixels; one mark; without a mark the head takes the mean.
"""

from __future__ import annotations

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from interp.planted.answers import AnswerKey, Edge, Head, Picture, Probe, null_heads
from interp.planted.pictures import COLORS, GRID, PATCH, SIDE, color_readout, filters
from interp.planted.wiring import EPS, Layout, balanced, blank, linear_head, null_qkv, wires

LAYERS, HEADS, D_HEAD = 2, 4, 16
WIDTH = HEADS * D_HEAD
LAYOUT = Layout(WIDTH, rgb=3, mark=1, const=1, cls=1, out=len(COLORS))
at = LAYOUT.at

_SQUARES = ("green", "blue", "yellow", "red", "blue", "red", "green", "yellow") * 2
PLANTED = (Head("L1.H2", "class reads mark", "the class token looks at the marked square and copies its colour"),)
KEY = AnswerKey(
    "planted-vit",
    PLANTED,
    (Edge("L1.H2", "logits"),),
    null_heads(LAYERS, HEADS, PLANTED),
    (
        Probe(
            "mark",
            "",
            "",
            "red",
            "blue",
            ("L1.H2",),
            clean_picture=Picture(_SQUARES, marked=5),
            corrupt_picture=Picture(_SQUARES, marked=9),
        ),
    ),
)


def build() -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """The model and its image processor."""
    model = _empty()
    vit = model.vit
    vit.embeddings.patch_embeddings.projection.weight.data = _patches()
    vit.embeddings.cls_token.data[0, 0] = balanced(wires(1, WIDTH, ([0], at("cls"), 1.0)))[0]
    vit.embeddings.position_embeddings.data[0] = balanced(
        wires(1, WIDTH, ([0], at("const"), 1.0)).expand(GRID * GRID + 1, -1)
    )
    for site in KEY.null:
        layer, head = int(site[1]), int(site[4])
        linear_head(vit.layers[layer].attention, head, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + head, scale=0.5))
    _reader(model)
    model.classifier.weight.data = wires(len(COLORS), WIDTH, (range(len(COLORS)), at("out"), 1.0))
    return model, processor()


def _config() -> ViTConfig:
    names = list(COLORS)
    return ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=8,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=EPS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )


def _empty() -> ViTForImageClassification:
    with torch.random.fork_rng(devices=[]):
        model = ViTForImageClassification(_config())
    blank(model)
    return model


def _patches() -> torch.Tensor:
    kernel = torch.zeros(WIDTH, 3, PATCH, PATCH)
    kernel[[*at("rgb"), *at("mark")]] = filters()
    kernel[-1] = -kernel.sum(0)
    return kernel


def _reader(model: ViTForImageClassification) -> None:
    q = wires(WIDTH, D_HEAD, (at("cls"), [0], 10.0))
    k = wires(WIDTH, D_HEAD, (at("mark"), [0], 1.0))
    v = wires(WIDTH, D_HEAD, (at("rgb") + at("const"), range(4), 1.0))
    o = wires(D_HEAD, WIDTH, (range(4), at("out"), color_readout(4.0)))
    linear_head(model.vit.layers[1].attention, 2, q=q, k=k, v=v, o=o)


def processor() -> ViTImageProcessorPil:
    """Pixels to 0..1 and nothing else."""
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_normalize=False, resample=0)
