"""JSON of auto-circuit: `{seq_labels, word_idxs, prompts: [{clean, corrupt, answers, wrong_answers}]}`.

Several answers count as right (all later years, for instance), so the score is the difference of mean logits.
`seq_labels` (a name for each token) and `word_idxs` (token numbers by name) belong to the tokenizer the file was made
with and are kept in `meta`, not turned into positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.prompts.rows import Row
from interp.reading import Entry, members, whole_file
from interp.tasks.task import Task


def auto_circuit(path: str | Path) -> Task:
    """The file as a task."""
    head = whole_file(path)
    shared = {name: head.value[name] for name in ("seq_labels", "word_idxs") if name in head.value}
    rows = tuple(_row(entry, shared) for entry in members(path, "prompts"))
    if not rows:
        raise head.fail("expected at least one prompt, got an empty list")
    return Task(Path(path).stem, rows)


def _row(entry: Entry, shared: dict[str, Any]) -> Row:
    clean, corrupt = entry.text("clean"), entry.text("corrupt")
    return Row(clean, corrupt, entry.texts("answers"), entry.texts("wrong_answers"), {}, {"line": entry.line, **shared})
