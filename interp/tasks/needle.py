"""A needle in a haystack: a fact somewhere in a long text, a question about it at the end.

Without a haystack of your own, prompts are those `zoo:needle` was trained on (`interp/needles.py`): notes "note :
lisbon amber violin ." between filler sentences, "question : lisbon" at the end, and two words to answer; lengths are
tokens of a word-level tokenizer, `<bos>` not counted. The corrupt prompt has other words in the needle, whose first is
the wrong answer. With `haystack=` (a text file) and `needles=` (from `interp.formats.needles`), each needle is put
between two sentences at each depth (0 is the start), and the whole answer is teacher-forced; lengths then are tokens of
the model.
Limits: one needle asked for; with a haystack of your own the corrupt prompt lets the answer's words change order.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.needles import VALUES, NeedleError
from interp.needles import haystack as generated
from interp.task import Row, Task, made
from interp.tasks.draw import Split, stream
from interp.vocabulary import Host, TaskError, Vocabulary

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ASK = "\nBased on the content of the book, Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, what to ask for it, and the words in it that answer."""

    needle: str
    question: str
    answer: str


def needle(
    model: Host | None = None,
    n: int = 1,
    *,
    seed: int = 0,
    split: Split = "train",
    lengths: Sequence[int] = (128, 256),
    depths: Sequence[float] = DEPTHS,
    distractors: int = 3,
    whole: bool = False,
    haystack: str | Path | None = None,
    needles: Sequence[Needle] = (),
) -> Task:
    """`n` prompts for each length and depth; `whole` scores all words of the answer instead of the first."""
    _check(lengths, depths, n)
    cells = list(itertools.product(lengths, depths, range(n)))
    rng = stream("needle", seed, split)
    if haystack is not None:
        hidden = Task("needle", tuple(_from_file(Path(haystack), needles, cells, Vocabulary(model))), "logprob", True)
        return hidden if model is None else hidden.on(model)
    rows = [_row(rng, length, depth, distractors, whole) for length, depth, _ in cells]
    options = {"n": n, "seed": seed, "lengths": list(lengths), "depths": list(depths), "distractors": distractors}
    options["whole"] = whole
    return made("needle", model, rows, options=options, score="logprob" if whole else "difference", whole=whole)


def _check(lengths: Sequence[int], depths: Sequence[float], n: int) -> None:
    if not lengths or not depths or n < 1:
        raise TaskError(f"expected at least one length, depth and row, got {lengths}, {depths} and n={n}")
    for depth in depths:
        if not 0.0 <= depth <= 1.0:
            raise TaskError(f"expected depths from 0 to 1, got {depth}")


def _row(rng: random.Random, length: int, depth: float, distractors: int, whole: bool) -> Row:
    try:
        hay = generated(rng, length=length, depth=depth, distractors=distractors)
    except NeedleError as error:
        raise TaskError(f"the needle is longer than the haystack: {error}") from None
    first, last = hay.answer_span
    others = rng.sample([word for word in VALUES if word not in hay.words], last - first)
    changed = (*hay.words[:first], *others, *hay.words[last:])
    answer = " ".join(hay.answer)
    return Row(
        clean=hay.text,
        corrupt=" ".join(changed),
        answers=(f" {answer}" if whole else f" {hay.answer[0]}",),
        wrong=() if whole else (f" {others[0]}",),
        positions={"needle": (f"note : {hay.key} {answer}", 1), "answer": (answer, 1), "question": (hay.key, 2)},
        meta={"length": length, "depth": depth, "key": hay.key, "answer": answer},
    )


def _from_file(
    path: Path, needles: Sequence[Needle], cells: Sequence[tuple[int, float, int]], words: Vocabulary
) -> list[Row]:
    if not needles:
        raise TaskError("expected needles= to hide in the haystack, got none; read some with interp.formats.needles")
    sentences = re.findall(r"[^.!?]+[.!?]+\s*", path.read_text(encoding="utf-8"))
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
