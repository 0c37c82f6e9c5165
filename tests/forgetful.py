"""A decoder that names the class of a word, one class by a head of its own: what it forgets is known beforehand."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import interp
from interp.planted.wiring import Layout, balanced, gpt2, gpt2_head, null_qkv, wires

CLASSES = 4
START, ASK = 0, 1
WORDS, NAMES = range(2, 2 + CLASSES), range(2 + CLASSES, 2 + 2 * CLASSES)
TOKENS, PLACES, WIDTH, D_HEAD, HEADS = 2 + 2 * CLASSES, 8, 32, 8, 4
LAYOUT = Layout(WIDTH, token=TOKENS, position=PLACES, const=1, name=CLASSES)
at = LAYOUT.at
ALONE, REST = 1, 2
"""The head that names class 0, and the one that names the others."""


@cache
def knows() -> interp.Model:
    """`<start> word <ask>` is answered by the word's class, 8 logits above the others. Both heads look at the word
    alone; the first reads nothing of a word of another class. Layer 1 is null."""
    return interp.attach(_built())


def hides() -> interp.Model:
    """The same, and a head of layer 1 takes more than class 0 was given: the answer is there, and then it is not."""
    model = _built()
    gpt2_head(model, 1, 3, **_reader((0,), -12.0))
    return interp.attach(model)


def _built() -> GPT2LMHeadModel:
    model = gpt2(vocabulary=TOKENS, positions=PLACES, layers=2, heads=HEADS, d_head=D_HEAD)
    for layer in range(2):
        for head in range(HEADS):
            gpt2_head(model, layer, head, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + head))
    model.transformer.wte.weight.data = balanced(wires(TOKENS, WIDTH, (range(TOKENS), at("token"), 1.0)))
    places = wires(PLACES, WIDTH, (range(PLACES), at("position"), 1.0))
    places[:, at("const")] = 1.0
    model.transformer.wpe.weight.data = balanced(places)
    model.lm_head.weight.data = wires(TOKENS, WIDTH, (list(NAMES), at("name"), 1.0))
    gpt2_head(model, 0, ALONE, **_reader((0,), 8.0))
    gpt2_head(model, 0, REST, **_reader((1, 2, 3), 8.0))
    return model


def _reader(classes: tuple[int, ...], weight: float) -> dict[str, Tensor]:
    q = wires(WIDTH, D_HEAD, (at("const"), [0], 100.0))
    k = wires(WIDTH, D_HEAD, (at("position", 1), [0], 1.0))
    v = wires(WIDTH, D_HEAD, ([at("token", WORDS[c])[0] for c in classes], range(len(classes)), 1.0))
    o = wires(D_HEAD, WIDTH, (range(len(classes)), at("name", classes), weight))
    return {"q": q, "k": k, "v": v, "o": o}


def asked(*classes: int) -> dict[str, Tensor]:
    """Words of these classes."""
    return {"input_ids": torch.tensor([[START, WORDS[c], ASK] for c in classes])}


def named(*classes: int) -> list[int]:
    """The right answers."""
    return [NAMES[c] for c in classes]


def says(model: interp.Model, *classes: int, **how: Any) -> list[int]:
    """The class that each of these is said to have."""
    logits = model.run(asked(*classes), **how)["logits"][:, -1]
    return (logits[:, list(NAMES)].argmax(-1)).tolist()


def margin(logits: Tensor, inputs: object) -> Tensor:
    """The logit of class 0 less the largest other."""
    names = logits[:, -1, list(NAMES)]
    return names[:, 0] - names[:, 1:].amax(-1)
