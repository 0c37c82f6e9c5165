"""Key-value retrieval: "fox = apple , lake = stone , fox =" -> " apple".

Keys and values are different words of one token. Corruptions: `question` asks for another key; `pairs` leaves the
question and lets two keys change places, so that the same question has the other answer.
Limits: one hop; the built-in words are everyday nouns and city names; others can be given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from interp.prompts.draw import Split, option, part, positive, stream, where
from interp.prompts.needles import KEYS, VALUES
from interp.prompts.planted_words import WORDS
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, TaskError, Vocabulary
from interp.tasks.task import Task, generator, made

Corruption = Literal["question", "pairs"]
POOL = tuple(dict.fromkeys((*WORDS, *KEYS, *VALUES)))


@generator
def key_value(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    pairs: int = 4,
    corruption: Corruption = "question",
    words: Sequence[str] | None = None,
) -> Task:
    """`n` prompts of `pairs` pairs, scored by the logit of the value asked for minus that of the other one."""
    option("corruption", corruption, ("question", "pairs"))
    if pairs < 2:
        raise TaskError(f"expected at least 2 pairs, got {pairs}")
    vocabulary = Vocabulary(model)
    known = part(vocabulary.choose(words, POOL, "word", least=6 * pairs), split)
    rng = stream("key_value", seed, split)
    rows = [_row(rng, known, pairs, corruption) for _ in range(positive(n))]
    given = None if words is None else list(words)
    options = {"n": n, "seed": seed, "pairs": pairs, "corruption": corruption, "words": given}
    return made("key_value", model, rows, options=options)


def _row(rng: random.Random, known: Sequence[str], pairs: int, corruption: Corruption) -> Row:
    drawn = rng.sample(list(known), 2 * pairs)
    keys, values = drawn[:pairs], drawn[pairs:]
    asked, other = rng.sample(range(pairs), 2)
    swapped = list(keys)
    swapped[asked], swapped[other] = keys[other], keys[asked]
    by_question = _text(keys, values, keys[other])
    corrupt = by_question if corruption == "question" else _text(swapped, values, keys[asked])
    clean = _text(keys, values, keys[asked])
    return Row(
        clean=clean,
        corrupt=corrupt,
        answers=(f" {values[asked]}",),
        wrong=(f" {values[other]}",),
        positions={
            "key": where(clean, keys[asked]),
            "value": where(clean, values[asked]),
            "question": where(clean, keys[asked], 2),
        },
        meta={"asked": asked, "other": other, "pairs": pairs, "corruption": corruption},
    )


def _text(keys: Sequence[str], values: Sequence[str], asked: str) -> str:
    said = " , ".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))
    return f"{said} , {asked} ="
