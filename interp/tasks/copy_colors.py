"""Multiple choice by copying: a box is red; which of four letters is before "red"?

In the style of the copy-colours task of MIB (Mueller et al., arXiv 2504.13151), generated here. Corruptions: `position`
puts the right colour behind another letter, `symbol` replaces the four letters by four others; both change the answer
and nothing else, so the wrong answer is the letter that is right in the corrupt prompt.
Limits: the model must have read enough to answer multiple choice; letters and colours must be one token each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from interp.prompts.draw import Split, option, part, positive, stream, where
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, Vocabulary
from interp.tasks.task import Task, generator, made

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink", "gray", "gold")
THINGS = tuple("box car house ball door book cup hat chair bag shirt phone table bottle boat key lamp coat".split())
SYMBOLS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
Corruption = Literal["position", "symbol"]


@generator
def copy_colors(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "position",
    symbols: Sequence[str] = SYMBOLS[:4],
) -> Task:
    """`n` questions, scored by the logit of the right letter minus that of the corrupt prompt's right letter."""
    option("corruption", corruption, ("position", "symbol"))
    words = Vocabulary(model)
    letters = words.given(symbols, "symbol", least=4)[:4]
    others = words.given([letter for letter in SYMBOLS if letter not in letters], "symbol", least=4)
    colors = words.pool(COLORS, "colour", least=5)
    things = part(words.pool(THINGS, "thing", least=3), split)
    rng = stream("copy_colors", seed, split)
    rows = [_row(rng, letters, others, colors, things, corruption) for _ in range(positive(n))]
    options = {"n": n, "seed": seed, "corruption": corruption, "symbols": list(symbols)}
    return made("copy_colors", model, rows, options=options)


def _row(
    rng: random.Random,
    letters: Sequence[str],
    others: Sequence[str],
    colors: Sequence[str],
    things: Sequence[str],
    corruption: Corruption,
) -> Row:
    thing, shown = rng.choice(list(things)), rng.sample(list(colors), 4)
    right, moved = rng.sample(range(4), 2)
    if corruption == "position":
        turned = list(shown)
        turned[right], turned[moved] = shown[moved], shown[right]
        corrupt, wrong = _text(thing, shown[right], turned, letters), letters[moved]
    else:
        new = rng.sample(list(others), 4)
        corrupt, wrong = _text(thing, shown[right], shown, new), new[right]
    clean = _text(thing, shown[right], shown, letters)
    return Row(
        clean=clean,
        corrupt=corrupt,
        answers=(f" {letters[right]}",),
        wrong=(f" {wrong}",),
        positions={"colour": where(clean, shown[right]), "choice": where(clean, shown[right], 2)},
        meta={"thing": thing, "colour": shown[right], "choices": shown, "right": right, "corruption": corruption},
    )


def _text(thing: str, color: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    listed = "\n".join(f" {letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return f"The {thing} is {color}. What color is the {thing}?\n{listed}\nAnswer:"
