"""A needle in a haystack: a fact somewhere in a long text, a question about it at the end.

Without a haystack of your own, prompts are those `zoo:needle` was trained on (`interp/prompts/needles.py`): notes "note
: lisbon amber violin ." between filler sentences, "question : lisbon" at the end, and two words to answer; lengths are
words, which are tokens of a word-level tokenizer, `<bos>` not counted. On a model only keys and values of one token
are drawn. The corrupt prompt has other words in the needle, whose first is
the wrong answer. With `haystack=` (a text file) and `needles=` (from `interp.formats.needles`), each needle is put
between two sentences at each depth (0 is the start), and the whole answer is teacher-forced; lengths then are tokens of
the model. Limits: one needle asked for; with a haystack of your own the corrupt prompt lets the answer's words change
order.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from interp.prompts.draw import Split, stream
from interp.prompts.haystack import Needle, from_file
from interp.prompts.needles import KEYS, VALUES, NeedleError
from interp.prompts.needles import haystack as generated
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, TaskError, Vocabulary
from interp.tasks.task import Task, generator, made

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
Pools = tuple[Sequence[str], Sequence[str]]
"""Keys and values that are one token each."""


@generator
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
        hidden = Task("needle", tuple(from_file(Path(haystack), needles, cells, Vocabulary(model))), "logprob", True)
        return hidden if model is None else hidden.on(model)
    words = Vocabulary(model)
    pools = words.pool(KEYS, "key", least=1 + distractors), words.pool(VALUES, "value", least=6)
    rows = [_row(rng, pools, length, depth, distractors, whole) for length, depth, _ in cells]
    options = {"n": n, "seed": seed, "lengths": list(lengths), "depths": list(depths), "distractors": distractors}
    options["whole"] = whole
    return made("needle", model, rows, options=options, score="logprob" if whole else "difference", whole=whole)


def _check(lengths: Sequence[int], depths: Sequence[float], n: int) -> None:
    if not lengths or not depths or n < 1:
        raise TaskError(f"expected at least one length, depth and row, got {lengths}, {depths} and n={n}")
    for depth in depths:
        if not 0.0 <= depth <= 1.0:
            raise TaskError(f"expected depths from 0 to 1, got {depth}")


def _row(rng: random.Random, pools: Pools, length: int, depth: float, distractors: int, whole: bool) -> Row:
    keys, values = pools
    try:
        hay = generated(rng, length=length, depth=depth, distractors=distractors, keys_from=keys, values_from=values)
    except NeedleError as error:
        raise TaskError(f"the needle is longer than the haystack: {error}") from None
    first, last = hay.answer_span
    others = rng.sample([word for word in values if word not in hay.words], last - first)
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
