"""Needles of one's own in a haystack of one's own: sentences of a text file with another sentence put between them.

The text is repeated where it is too short. The corrupt prompt has the answer's words in reverse order, so it has as
many tokens where words are tokens, and an error says where it has not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.prompts.rows import Row
from interp.prompts.vocabulary import TaskError, Vocabulary
from interp.reading import content

ASK = "\nBased on the content of the book, Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, what to ask for it, and the words in it that answer."""

    needle: str
    """The sentence that is hidden."""
    question: str
    """What is asked about it."""
    answer: str
    """The words of the needle that answer the question."""


def from_file(
    path: Path, needles: Sequence[Needle], cells: Sequence[tuple[int, float, int]], words: Vocabulary
) -> list[Row]:
    """One row for each cell (length in tokens, depth from 0 to 1, number of the needle)."""
    if not needles:
        raise TaskError("expected needles= to hide in the haystack, got none; read some with interp.formats.needles")
    sentences = re.findall(r"[^.!?]+[.!?]+\s*", content(path)[1])
    if not sentences:
        raise TaskError(f"expected a haystack with sentences in {path}, got none")
    return [_hidden(sentences, needles[k % len(needles)], length, depth, words) for length, depth, k in cells]


def _hidden(sentences: Sequence[str], one: Needle, length: int, depth: float, words: Vocabulary) -> Row:
    ask = ASK.format(question=one.question)
    room = length - _count(words, f"{one.needle} {ask} {one.answer}")
    if room < 1:
        raise TaskError(f"the needle is longer than the haystack: needle and question leave {room} of {length} tokens")
    kept, used = [], 0
    for sentence in itertools.cycle(sentences):
        used += _count(words, sentence)
        if used > room:
            break
        kept.append(sentence)
    at = round(depth * len(kept))
    clean, corrupt = (
        "".join(kept[:at]) + hidden.strip() + " " + "".join(kept[at:]).strip() + ask
        for hidden in (one.needle, _turned(one))
    )
    return Row(
        clean=clean,
        corrupt=corrupt,
        answers=(f" {one.answer}",),
        positions={"needle": (one.needle.strip(), 1), "question": (one.question, 1)},
        meta={"length": length, "depth": depth, "question": one.question, "answer": one.answer},
    )


def _turned(one: Needle) -> str:
    """The needle with the answer's words in reverse order; with all its words so where the answer is one word."""
    turned = one.needle.replace(one.answer, " ".join(reversed(one.answer.split())))
    return turned if turned != one.needle else " ".join(reversed(one.needle.split()))


def _count(words: Vocabulary, text: str) -> int:
    if words.tokenizer is None:
        return len(text.split())
    return len(words.tokenizer(text, add_special_tokens=False)["input_ids"])
