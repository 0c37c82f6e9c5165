"""A GPT-2 whose heads of published kinds were written by hand, each with its job.

Residual: the token (one-hot), the position (one-hot), flags, the word to keep from, the task, the output. On paper:

    L0.H0  duplicate      looks at an earlier copy of the same name (or at <bos>), and flags that it did
    L0.H5  task           the last row of "up up three" looks at "up" and writes the task's direction
    L1.H0  S-inhibition   "to" looks at the flagged name and writes which one it is into what the movers' queries read
    L1.H3  successor      writes the next number for any it looks at (its own row)
    L1.H4  iteration      looks three places back, whatever stands there, and writes nothing
    L1.H5  refusal        "=" looks at "bomb" and says "no"; without it "yes" has a logit of 4
    L2.H0  name mover     "to" looks at names, the kept one least, and copies 16 of it
    L2.H1  negative       looks as the mover does and takes 4 off
    MLP 1  a neuron a number: the task's direction and a number together make the next number's logit 16
"""

from __future__ import annotations

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.planted.wiring import Layout, balanced, gpt2, gpt2_head, null_qkv, tokenizer, wires

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay")
NUMBERS = ("one", "two", "three", "four", "five", "six")
MARKS = ("to", "and", "=", "up", "off", "bomb", "safe", "yes", "no")
WORDS = (*NAMES, *NUMBERS, *MARKS)
TOKENS, POSITIONS, LAYERS, HEADS, D_HEAD = 3 + len(WORDS), 16, 3, 6, 40
WIDTH = HEADS * D_HEAD
LAYOUT = Layout(
    WIDTH, token=TOKENS, position=POSITIONS, first=1, const=1, copy=1, task=1, keep=TOKENS, out=TOKENS,
)  # fmt: skip
at = LAYOUT.at
JOBS = {
    "L0.H0": "duplicate", "L0.H5": "task", "L1.H0": "S-inhibition", "L1.H3": "successor", "L1.H4": "iteration",
    "L1.H5": "refusal", "L2.H0": "mover", "L2.H1": "negative",
}  # fmt: skip


def token(*words: str) -> list[int]:
    return [2 + WORDS.index(word) for word in words]


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    model = gpt2(vocabulary=TOKENS, positions=POSITIONS, layers=LAYERS, heads=HEADS, d_head=D_HEAD, inner=8)
    for layer in range(LAYERS):
        for head in range(HEADS):
            gpt2_head(model, layer, head, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + head))
    model.transformer.wte.weight.data = balanced(wires(TOKENS, WIDTH, (range(TOKENS), at("token"), 1.0)))
    places = wires(POSITIONS, WIDTH, (range(POSITIONS), at("position"), 1.0), ([0], at("first"), 1.0))
    places[:, at("const")] = 1.0
    model.transformer.wpe.weight.data = balanced(places)
    read = wires(TOKENS, WIDTH, (range(TOKENS), at("out"), 1.0))
    read[token("yes"), at("const")[0]] = 4.0
    model.lm_head.weight.data = read
    names, numbers = token(*NAMES), token(*NUMBERS)
    _duplicate(model, names)
    _look(model, 0, 5, query=at("const"), key=at("token", token("up")), value=at("token", token("up")),
          to=at("task"), amount=1.0)  # fmt: skip
    _inhibit(model, names)
    _successor(model, numbers)
    _back(model, 3)
    _look(model, 1, 5, query=at("token", token("=")), key=at("token", token("bomb")),
          value=at("token", token("bomb")), to=at("out", token("no")), amount=8.0)  # fmt: skip
    _mover(model, 0, names, 16.0)
    _mover(model, 1, names, -4.0)
    _numbers(model, numbers)
    return model, tokenizer(WORDS)


REST = [D_HEAD - 1]


def _look(model, layer, head, *, query, key, value, to, amount) -> None:  # type: ignore[no-untyped-def]
    """Where the query's feature is, 20 on the key's, 10 on <bos>; copies the value's feature."""
    q = wires(WIDTH, D_HEAD, (query, [0], 20.0), (at("const"), REST, 10.0))
    k = wires(WIDTH, D_HEAD, (key, [0], 1.0), (at("first"), REST, 1.0))
    v = wires(WIDTH, D_HEAD, (value, [0], 1.0))
    gpt2_head(model, layer, head, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, ([0], to, amount)))


def _duplicate(model: GPT2LMHeadModel, names: list[int]) -> None:
    """40 for the same name, 30 less at its own place, 20 on <bos>."""
    match, place = range(len(names)), range(len(names), len(names) + POSITIONS)
    q = wires(
        WIDTH, D_HEAD, (at("token", names), match, 40.0), (at("position"), place, -30.0), (at("const"), REST, 20.0)
    )
    k = wires(WIDTH, D_HEAD, (at("token", names), match, 1.0), (at("position"), place, 1.0), (at("first"), REST, 1.0))
    v = torch.zeros(WIDTH, D_HEAD)
    v[at("token", names), 0] = 1.0
    gpt2_head(model, 0, 0, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, ([0], at("copy"), 1.0)))


def _inhibit(model: GPT2LMHeadModel, names: list[int]) -> None:
    copy = range(len(names))
    q = wires(WIDTH, D_HEAD, (at("token", token("to")), [0], 40.0), (at("const"), REST, 20.0))
    k = wires(WIDTH, D_HEAD, (at("copy"), [0], 1.0), (at("first"), REST, 1.0))
    v = wires(WIDTH, D_HEAD, (at("token", names), copy, 1.0))
    gpt2_head(model, 1, 0, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, (copy, at("keep", names), 1.0)))


def _mover(model: GPT2LMHeadModel, head: int, names: list[int], amount: float) -> None:
    """20 on every name, less 20 on the one to keep from; 10 on <bos>."""
    match = range(len(names))
    q = wires(WIDTH, D_HEAD, (at("keep", names), match, -20.0), (at("token", token("to")), [30], 20.0),
              (at("const"), REST, 10.0))  # fmt: skip
    k = wires(WIDTH, D_HEAD, (at("token", names), match, 1.0), (at("first"), REST, 1.0))
    k[at("token", names), 30] = 1.0
    v = wires(WIDTH, D_HEAD, (at("token", names), match, 1.0))
    gpt2_head(model, 2, head, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, (match, at("out", names), amount)))


def _successor(model: GPT2LMHeadModel, numbers: list[int]) -> None:
    """Rests on <bos> unless a number has its place; its weights say the next one."""
    copy = range(len(numbers) - 1)
    q = wires(WIDTH, D_HEAD, (at("const"), REST, 30.0))
    k = wires(WIDTH, D_HEAD, (at("first"), REST, 1.0))
    v = wires(WIDTH, D_HEAD, (at("token", numbers[:-1]), copy, 1.0))
    gpt2_head(model, 1, 3, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, (copy, at("out", numbers[1:]), 2.0)))


def _back(model: GPT2LMHeadModel, steps: int) -> None:
    places = range(POSITIONS)
    q = wires(WIDTH, D_HEAD, (at("position")[steps:], list(places)[: POSITIONS - steps], 60.0))
    k = wires(WIDTH, D_HEAD, (at("position"), places, 1.0))
    v = wires(WIDTH, D_HEAD, (at("const"), [0], 1.0))
    gpt2_head(model, 1, 4, q=q, k=k, v=v, o=torch.zeros(D_HEAD, WIDTH))


def _numbers(model: GPT2LMHeadModel, numbers: list[int]) -> None:
    mlp, count = model.transformer.h[1].mlp, len(numbers) - 1
    into = wires(WIDTH, 8, (at("token", numbers[:-1]), range(count), 1.0))
    into[at("task")[0], :count] = 1.0
    mlp.c_fc.weight.data = into
    mlp.c_fc.bias.data[:count] = -1.0
    mlp.c_proj.weight.data = balanced(wires(8, WIDTH, (range(count), at("out", numbers[1:]), 16.0)))
