"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any of 33 to 99.

Hanna et al., "How does GPT-2 compute greater-than?" (arXiv 2305.00586). All later two-digit years are right, all others
wrong, and the score is the difference of their summed probabilities. The corrupt prompt starts in the year 01, after
which nearly every year is right. Start years are 2 to 98.
The model says a year's last two digits as one token after the century (GPT-2 does), or digit by digit (SmolLM2,
Gemma). Then the first of them is asked for, on which two years of a century differ first: greater digits are right,
smaller ones wrong, the same digit is neither, since what follows decides; start years are 10 to 89, so that there are
some of each, and `meta` says "digit".
Limits: other tokenizers (digits in threes) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from interp.prompts.draw import Split, part, positive, stream
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, TaskError, Vocabulary
from interp.tasks.task import Task, generator, made

NOUNS: tuple[str, ...] = tuple(
    """war siege reign voyage journey project trial drought famine plague expedition marriage career contract treaty
    conflict alliance campaign crisis rebellion strike tour dynasty feud""".split()
)
CENTURIES = ("11", "12", "13", "14", "15", "16", "17")
YEARS = tuple(f"{year:02d}" for year in range(2, 99))
ALL = tuple(f"{year:02d}" for year in range(100))
TENS = tuple(f"{year:02d}" for year in range(10, 90))
TEXT = "The {noun} lasted from the year {century}{year} to the year {century}"


@generator
def greater_than(
    model: Host | None = None, n: int = 64, *, seed: int = 0, split: Split = "train", nouns: Sequence[str] | None = None
) -> Task:
    """`n` prompts, scored by the probability of later years minus that of the others."""
    words = Vocabulary(model)
    row = _by_digit if model is not None and _digit_by_digit(words) else _row
    known = part(words.choose(nouns, NOUNS, "noun", least=3), split)
    rng, rows = stream("greater_than", seed, split), []
    for _ in range(positive(n)):
        noun, century = rng.choice(list(known)), rng.choice(CENTURIES)
        rows.append(row(noun, century, rng.choice(YEARS if row is _row else TENS)))
    options = {"n": n, "seed": seed, "nouns": nouns and list(nouns)}
    return made("greater_than", model, rows, options=options, score="probability")


def _row(noun: str, century: str, year: str) -> Row:
    return Row(
        clean=TEXT.format(noun=noun, century=century, year=year),
        corrupt=TEXT.format(noun=noun, century=century, year="01"),
        answers=tuple(other for other in ALL if other > year),
        wrong=tuple(other for other in ALL if other <= year),
        positions={"year": (f"{century}{year}", 1)},
        meta={"noun": noun, "century": century, "year": year},
    )


def _by_digit(noun: str, century: str, year: str) -> Row:
    """The same where years are said digit by digit."""
    made, digits = _row(noun, century, year), "0123456789"
    right, wrong = (tuple(d for d in digits if (d > year[0]) == up and d != year[0]) for up in (True, False))
    return replace(made, answers=right, wrong=wrong, meta={**made.meta, "digit": True})


def _digit_by_digit(words: Vocabulary) -> bool:
    """Whether the last digits of a year are a token each; raises where they are neither that nor one token."""
    found = set()
    for whole in ("1732", "1401"):
        ids, century, rest = (words.ids(part) for part in (f" {whole}", f" {whole[:2]}", whole[2:]))
        single = [words.ids(digit) for digit in whole[2:]]
        pieces = (rest,) if len(rest) == 1 else tuple(single)
        fits = ids == (*century, *(i for piece in pieces for i in piece)) and all(len(piece) == 1 for piece in pieces)
        if words.unknown(ids) or not fits:
            raise TaskError(
                f"expected a tokenizer that splits years into century and two digits, or into digits, and it makes"
                f" {whole} into {[words.tokenizer.convert_ids_to_tokens(i) for i in ids]}: greater_than cannot be asked"
                " of it"
            )
        found.add(len(pieces) == 2)
    return found == {True}
