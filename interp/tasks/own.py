"""Your own prompts as a task: pairs that differ in one thing, and what is right and wrong after the first of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.prompts.rows import Row, Score
from interp.prompts.vocabulary import Host, TaskError
from interp.tasks.task import Task

Words = str | int | Sequence[str | int | Sequence[str | int]]


def compare(
    model: Host,
    clean: str | Sequence[str],
    corrupt: str | Sequence[str],
    answer: Words,
    wrong: Words | None = None,
    *,
    images: Any = None,
    corrupt_images: Any = None,
    score: Score | None = None,
    name: str = "compare",
) -> Task:
    """Your own prompts: `interp.compare(m, "Paris is in", "Rome is in", " France", " Italy")` has `.clean`, `.corrupt`
    and `.metric`, and goes wherever a task does (`interp.patch`, `importance`, `edges`, `report`).

    `clean` are prompts that the model should answer with `answer` rather than with `wrong`, `corrupt` the same prompts
    with one thing changed, token by token as long as they. One text or one a row; an answer of one row may be several
    words. Write words as in the text, with the blank before them; each is one token. Without
    `wrong` the score is the log-probability of the answer. `images` are one a row, and the corrupt ones are the same
    unless `corrupt_images` says otherwise.
    """
    texts, others = _listed("clean", clean), _listed("corrupt", corrupt)
    if len(texts) != len(others):
        raise TaskError(f"expected as many corrupt prompts as clean ones ({len(texts)}), got {len(others)}")
    count = len(texts)
    right = _answers("answer", answer, count)
    off = [()] * count if wrong is None else _answers("wrong", wrong, count)
    shown, hidden = _pictures("images", images, count), _pictures("corrupt_images", corrupt_images, count)
    if images is None and corrupt_images is not None:
        raise TaskError("corrupt_images= goes with images=: what the clean prompts show is not given")
    rows = [
        Row(*pair, *words, image=image, corrupt_image=image if images is not None and corrupt_images is None else other)
        for pair, words, image, other in zip(
            zip(texts, others, strict=True), zip(right, off, strict=True), shown, hidden, strict=True
        )
    ]
    chosen: Score = score or ("logprob" if wrong is None else "difference")
    return Task(name, tuple(rows), chosen).on(model)


def _listed(name: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise TaskError(f"expected texts in {name}, got {text!r:.80} in row {i}")
    if not texts:
        raise TaskError(f"expected at least one text in {name}, got none")
    return texts


def _answers(name: str, given: Words, count: int) -> list[tuple[str | int, ...]]:
    """One tuple a row."""
    rows = [given] * count if isinstance(given, (str, int)) else list(given)
    if len(rows) != count:
        raise TaskError(f"expected {name} as one word, or as one entry for each of {count} rows; got {len(rows)}")
    return [(row,) if isinstance(row, (str, int)) else tuple(row) for row in rows]


def _pictures(name: str, given: Any, count: int) -> list[Any]:
    rows = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(rows) != count:
        raise TaskError(f"expected one picture for each of {count} rows in {name}, got {len(rows)}")
    return rows
