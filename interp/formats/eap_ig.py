"""CSV files of EAP-IG (Hanna et al., arXiv 2403.17806): IOI-like pairs with token ids, and greater-than with years.

Columns `clean,corrupted,correct_idx,incorrect_idx` (and `corrupted_hard`), or `clean,corrupted,label` where the label
is a two-digit year. The ids belong to one tokenizer: give the one they were made with and answers become texts that any
model can be asked for; without it they stay ids. Greater-than answers are all later years, as in `tasks.greater_than`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from interp.prompts.rows import Row
from interp.reading import Entry, FormatError, table
from interp.tasks.task import Task

YEARS = tuple(f"{year:02d}" for year in range(100))


def eap_ig(
    path: str | Path, *, tokenizer: Any = None, corrupted: Literal["corrupted", "corrupted_hard"] = "corrupted"
) -> Task:
    """The file as a task, scored by a logit difference, or by a difference of probabilities for greater-than."""
    entries = table(path, needed=("clean", corrupted))
    if not entries:
        raise FormatError(f"{path}: no rows under the head")
    if "label" in entries[0].value:
        return Task(Path(path).stem, tuple(_year(entry, corrupted) for entry in entries), "probability")
    return Task(Path(path).stem, tuple(_pair(entry, corrupted, tokenizer) for entry in entries))


def _pair(entry: Entry, corrupted: str, tokenizer: Any) -> Row:
    entry.need("correct_idx", "incorrect_idx")
    right, wrong = (_answer(entry.whole(name), tokenizer, entry) for name in ("correct_idx", "incorrect_idx"))
    return Row(entry.text("clean"), entry.text(corrupted), (right,), (wrong,), {}, {"line": entry.line})


def _answer(index: int, tokenizer: Any, entry: Entry) -> str | int:
    if tokenizer is None:
        return index
    if not 0 <= index < len(tokenizer):
        raise entry.fail(f"expected token ids below {len(tokenizer)}, got {index}: another tokenizer made this file")
    return str(tokenizer.decode([index]))


def _year(entry: Entry, corrupted: str) -> Row:
    label = entry.whole("label")
    if not 0 <= label <= 98:
        raise entry.fail(f"expected a two-digit year up to 98 in 'label', got {label}")
    later, rest = YEARS[label + 1 :], YEARS[: label + 1]
    return Row(entry.text("clean"), entry.text(corrupted), later, rest, {}, {"line": entry.line, "year": label})
