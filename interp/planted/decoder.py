"""`zoo:planted-decoder`: a two-layer GPT2LMHeadModel whose six heads that do anything were written by hand.

Residual stream: the token (one-hot), the position (cosines and sines), the last word, the one before, the output.
Positions use the 32 frequencies k whose classes form the fourth powers modulo the prime 257: the sum of their cosines
is 32 at distance 0 and, being half a Gauss period, at most (1 + 3 sqrt(257)) / 8 = 6.2 elsewhere. That is a one-hot
code of 257 positions in 64 coordinates, with a previous-token head one rotation away.

On paper (scores before the softmax; "rest" is position 0, whose value is zero for every head):

    L0.H1  previous token    19.2 on i-1, at most 3.8 elsewhere, rest 11.2; copies the token to `prev`
    L0.H4  two back          the same for i-2, copies to `prev2`
    L0.H2  duplicate token   32 on an earlier equal word, 0 on itself, rest 16; adds 8 to the logit of "again"
    L0.H3  sink              120 on position 0, 0 elsewhere: in float32 the weight elsewhere is exactly 0, and z
                             is below 1e-8; moved elsewhere, it adds up to 12 to the logit of "static"
    L1.H4  induction         16 where `prev` is the current word, rest 10; copies the token found, times 16
    L1.H2  retrieval         at "=" only: 16 where `prev2` is the word before "=", rest 10; copies it, times 16

"new" has a logit of 4 everywhere. Every other head is null: random patterns, output matrix exactly zero.
Induction and retrieval weights are 1 - e^-6 = 0.9975 on a single match, so a logit difference of 16 is really 15.9.
Limits: 64 words, 257 - 1 positions, prompts start with `<bos>`; numbers above hold up to leakage of about 1%.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.planted.answers import AnswerKey, Edge, Head, Probe, null_heads
from interp.planted.wiring import Layout, balanced, gpt2, gpt2_head, null_qkv, tokenizer, wires
from interp.prompts.planted_words import WORDS

MARKS = ("=", ",", "again", "new", "static")
PRIME, FREQUENCIES, POSITIONS = 257, 32, 256
LAYERS, HEADS, D_HEAD = 2, 6, 128
WIDTH = HEADS * D_HEAD

PLANTED = (
    Head("L0.H1", "previous token", "looks one token back and copies that token into `prev`"),
    Head("L0.H2", "duplicate token", "looks at an earlier copy of the same word and says 'again'"),
    Head("L0.H3", "sink", "rests on position 0, whose value is zero; says 'static' when made to look elsewhere"),
    Head("L0.H4", "two back", "looks two tokens back and copies that token into `prev2`"),
    Head("L1.H2", "retrieval", "at '=', looks where the word before '=' stands two back and says the word there"),
    Head("L1.H4", "induction", "looks where the current word stands one back and says the word there"),
)
EDGES = (
    Edge("L0.H1", "L1.H4.k"),
    Edge("L0.H1", "L1.H2.q"),
    Edge("L0.H4", "L1.H2.k"),
    Edge("L0.H2", "logits"),
    Edge("L0.H3", "logits"),
    Edge("L1.H2", "logits"),
    Edge("L1.H4", "logits"),
)
PROBES = (
    Probe(
        "induction",
        "fox apple lake stone moon fox",
        "lake apple fox stone moon fox",
        "apple",
        "stone",
        ("L0.H1", "L1.H4"),
    ),
    Probe(
        "question",
        "fox = apple , lake = stone , fox =",
        "fox = apple , lake = stone , lake =",
        "apple",
        "stone",
        ("L0.H1", "L1.H2"),
    ),
    Probe(
        "pairs",
        "fox = apple , lake = stone , fox =",
        "lake = apple , fox = stone , fox =",
        "apple",
        "stone",
        ("L0.H4", "L1.H2"),
    ),
    Probe("duplicate", "fox apple lake fox", "fox apple lake moon", "again", "new", ("L0.H2",)),
)
KEY = AnswerKey("planted-decoder", PLANTED, EDGES, null_heads(LAYERS, HEADS, PLANTED), PROBES)

TOKENS = len(("<pad>", "<bos>", *MARKS, *WORDS, "<unk>"))
WORD_IDS = list(range(TOKENS - 1 - len(WORDS), TOKENS - 1))
SPOKEN = list(range(2, TOKENS - 1))
EQUALS, NEW = 2, 5
LAYOUT = Layout(
    WIDTH, token=TOKENS, position=2 * FREQUENCIES, first=1, later=1, const=1, prev=TOKENS, prev2=TOKENS, out=TOKENS
)
at = LAYOUT.at


def frequencies() -> list[int]:
    """One member of each pair (k, -k) of the fourth powers modulo 257."""
    fourth = {pow(k, 4, PRIME) for k in range(1, PRIME)}
    return sorted(k for k in fourth if k <= PRIME // 2)


def position_code() -> Tensor:
    """[position, 64]: the cosines, then the sines; row 0 is zero, since position 0 is found by its flag."""
    angle = 2 * math.pi / PRIME * torch.arange(POSITIONS, dtype=torch.float64)[:, None] * torch.tensor(frequencies())
    code = torch.cat([angle.cos(), angle.sin()], dim=1).float()
    code[0] = 0
    return code


def shift(steps: int) -> Tensor:
    """The [64, 64] rotation that takes the code of position i to that of i - steps."""
    angle = 2 * math.pi / PRIME * steps * torch.tensor(frequencies(), dtype=torch.float64)
    cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)], 0).float()


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model and its tokenizer."""
    model = gpt2(vocabulary=TOKENS, positions=POSITIONS, layers=LAYERS, heads=HEADS, d_head=D_HEAD)
    for site in KEY.null:
        layer, head = int(site[1]), int(site[4])
        gpt2_head(model, layer, head, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + head))
    _embed(model)
    _look_back(model, 1, steps=1, to="prev")
    _look_back(model, 4, steps=2, to="prev2")
    _duplicate(model)
    _sink(model)
    _induction(model)
    _retrieval(model)
    return model, tokenizer((*MARKS, *WORDS))


def _embed(model: GPT2LMHeadModel) -> None:
    model.transformer.wte.weight.data = balanced(wires(TOKENS, WIDTH, (range(TOKENS), at("token"), 1.0)))
    later = (torch.arange(POSITIONS) > 0).float()[:, None]
    everywhere = range(POSITIONS)
    model.transformer.wpe.weight.data = balanced(
        wires(
            POSITIONS,
            WIDTH,
            (everywhere, at("position"), position_code()),
            (everywhere, at("first"), 1 - later),
            (everywhere, at("later"), later),
            (everywhere, at("const"), torch.ones_like(later)),
        )
    )
    read = wires(TOKENS, WIDTH, (range(TOKENS), at("out"), 1.0))
    read[NEW, at("const")] = 4.0
    model.lm_head.weight.data = read


def _read(*wanted: tuple[list[int], list[int] | range, float | Tensor]) -> Tensor:
    return wires(WIDTH, D_HEAD, *wanted)


def _write(*wanted: tuple[list[int] | range, list[int], float]) -> Tensor:
    return wires(D_HEAD, WIDTH, *wanted)


REST = [D_HEAD - 1]
COPY_V = (at("token", SPOKEN), range(len(SPOKEN)), 1.0)


def _look_back(model: GPT2LMHeadModel, head: int, *, steps: int, to: str) -> None:
    code = range(2 * FREQUENCIES)
    q = _read((at("position"), code, 0.6 * shift(steps)), (at("const"), REST, 0.6 * FREQUENCIES - 8))
    k = _read((at("position"), code, 1.0), (at("first"), REST, 1.0))
    o = _write((range(len(SPOKEN)), at(to, SPOKEN), 1.0))
    gpt2_head(model, 0, head, q=q, k=k, v=_read(COPY_V), o=o)


def _duplicate(model: GPT2LMHeadModel) -> None:
    code, match = range(2 * FREQUENCIES - 1), range(2 * FREQUENCIES - 1, 2 * FREQUENCIES - 1 + len(WORDS))
    words, place = at("token", WORD_IDS), at("position")[:-1]
    q = _read((words, match, 32.0), (place, code, -1.0), (at("const"), REST, 16.0))
    k = _read((words, match, 1.0), (place, code, 1.0), (at("first"), REST, 1.0))
    v = _read((at("later"), [0], 1.0))
    gpt2_head(model, 0, 2, q=q, k=k, v=v, o=_write(([0], at("out", 4), 8.0)))


def _sink(model: GPT2LMHeadModel) -> None:
    q, k = _read((at("const"), REST, 120.0)), _read((at("first"), REST, 1.0))
    gpt2_head(model, 0, 3, q=q, k=k, v=_read((at("later"), [0], 1.0)), o=_write(([0], at("out", 6), 12.0)))


def _induction(model: GPT2LMHeadModel) -> None:
    match = range(len(WORDS))
    q = _read((at("token", WORD_IDS), match, 16.0), (at("const"), REST, 10.0))
    k = _read((at("prev", WORD_IDS), match, 1.0), (at("first"), REST, 1.0))
    gpt2_head(model, 1, 4, q=q, k=k, v=_read(COPY_V), o=_write((range(len(SPOKEN)), at("out", SPOKEN), 16.0)))


def _retrieval(model: GPT2LMHeadModel) -> None:
    match = range(len(WORDS))
    rest = ((at("const"), REST, 40.0), (at("token", EQUALS), REST, -30.0))
    q = _read((at("prev", WORD_IDS), match, 16.0), *rest)
    k = _read((at("prev2", WORD_IDS), match, 1.0), (at("first"), REST, 1.0))
    gpt2_head(model, 1, 2, q=q, k=k, v=_read(COPY_V), o=_write((range(len(SPOKEN)), at("out", SPOKEN), 16.0)))
