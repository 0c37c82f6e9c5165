"""Induction: a random passage said twice, asked in the middle of the second time: A B ... A -> B.

Olsson et al., "In-context Learning and Induction Heads" (arXiv 2209.11895). Prompts are ids, drawn without repetition
from the tokens that are plain words (any tokens where there is no tokenizer). In the corrupt prompt the answer has
changed places with another token of the first passage, later in it, which therefore is what an induction head now says.
Limits: the passage may have at most as many tokens as there are words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from interp.prompts.draw import Split, positive, stream
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, TaskError
from interp.tasks.task import Task, generator, made

MARKERS = "Ġ▁ "
WORD = re.compile("[A-Za-z][A-Za-z0-9]+")


@generator
def induction(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    length: int = 12,
    tokens: Sequence[int] | None = None,
) -> Task:
    """`n` prompts, scored by the logit of the token that came next minus that of the one it was exchanged with."""
    if length < 4:
        raise TaskError(f"expected a passage of at least 4 tokens, got length={length}")
    if model is None and tokens is None:
        raise TaskError("induction prompts are ids: give a model, or tokens=")
    pool, opening = list(tokens or words(model)), bos(model)
    if len(set(pool)) < length:
        raise TaskError(f"expected at least {length} different tokens, got {len(set(pool))}: use a shorter length=")
    rng = stream("induction", seed, split)
    rows = [_row(rng, pool, opening, length) for _ in range(positive(n))]
    options = {"n": n, "seed": seed, "length": length, "tokens": None if tokens is None else list(tokens)}
    return made("induction", model, rows, options=options)


def _row(rng: random.Random, pool: list[int], opening: tuple[int, ...], length: int) -> Row:
    said = rng.sample(sorted(set(pool)), length)
    k = rng.randrange(1, length - 2)
    other = rng.randrange(k + 2, length) if k + 2 < length else k + 2
    exchanged = list(said)
    exchanged[k + 1], exchanged[other] = said[other], said[k + 1]
    start = len(opening)
    return Row(
        clean=(*opening, *said, *said[: k + 1]),
        corrupt=(*opening, *exchanged, *said[: k + 1]),
        answers=(said[k + 1],),
        wrong=(said[other],),
        positions={
            "first A": (start + k, start + k + 1),
            "first B": (start + k + 1, start + k + 2),
            "second A": (start + length + k, start + length + k + 1),
        },
        meta={"length": length, "at": k, "exchanged": other},
    )


def words(model: Any) -> list[int]:
    """Ids of plain words of two letters or more (with digits behind, w12), or every id without a tokenizer."""
    tokenizer = model.tokenizer
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return list(range(_size(model)))
    special = set(tokenizer.all_special_ids)
    pieces = {i: tokenizer.convert_ids_to_tokens(i).lstrip(MARKERS) for i in range(len(tokenizer)) if i not in special}
    return [i for i, piece in pieces.items() if WORD.fullmatch(piece)]


def _size(model: Any) -> int:
    config = getattr(model.module, "config", None)
    size = getattr(config, "vocab_size", None) or getattr(config, "vocab", None)
    if not size:
        raise TaskError(
            f"random words need a tokenizer or config.vocab_size, and {type(model.module).__name__} has neither: give"
            " texts or ids of your own, as in interp.head_roles(m, m.prepare(ids))."
        )
    return int(size)


def bos(model: Any) -> tuple[int, ...]:
    """What the tokenizer puts in front of every text, if it does."""
    if model is None or not hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return ()
    opening = model.tokenizer.bos_token_id
    ids = model.tokenizer("a").input_ids
    return (opening,) if ids and opening is not None and ids[0] == opening else ()
