"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any of 33 to 99.

Hanna et al., "How does GPT-2 compute greater-than?" (arXiv 2305.00586). All later two-digit years are right, all others
wrong, and the score is the difference of their summed probabilities. The corrupt prompt starts in the year 01, after
which nearly every year is right. Start years are 2 to 98.
Limits: the model must say a year's last two digits as one token after the century (GPT-2 does; tokenizers of single
digits or of three do not, and are refused).
"""

from __future__ import annotations

from collections.abc import Sequence

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
TEXT = "The {noun} lasted from the year {century}{year} to the year {century}"


@generator
def greater_than(
    model: Host | None = None, n: int = 64, *, seed: int = 0, split: Split = "train", nouns: Sequence[str] | None = None
) -> Task:
    """`n` prompts, scored by the probability of later years minus that of the others."""
    words = Vocabulary(model)
    if model is not None:
        _check_years(words)
    known = part(words.choose(nouns, NOUNS, "noun", least=3), split)
    rng, rows = stream("greater_than", seed, split), []
    for _ in range(positive(n)):
        noun, century, year = rng.choice(list(known)), rng.choice(CENTURIES), rng.choice(YEARS)
        rows.append(_row(noun, century, year))
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


def _check_years(words: Vocabulary) -> None:
    """Centuries and years must be one token each, and a year two: the century, then the rest."""
    for whole in ("1732", "1401"):
        ids = words.ids(f" {whole}")
        if words.unknown(ids) or ids != (*words.ids(f" {whole[:2]}"), *words.ids(whole[2:])) or len(ids) != 2:
            raise TaskError(
                f"expected a tokenizer that splits years into century and two digits, and it makes {whole} into"
                f" {[words.tokenizer.convert_ids_to_tokens(i) for i in ids]}: greater_than cannot be asked of it"
            )
