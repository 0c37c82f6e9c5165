"""Subject-verb agreement files of "Sparse feature circuits" (Marks et al., arXiv 2403.19647).

One object a line, whatever the file's ending: `clean_prefix, patch_prefix, clean_answer, patch_answer, case`.
"""

from __future__ import annotations

from pathlib import Path

from interp.prompts.rows import Row
from interp.reading import Entry, lines
from interp.tasks.task import Task


def sva(path: str | Path, *, case: str | None = None) -> Task:
    """The file as a task, or only the rows of one case, scored by a logit difference."""
    entries = [entry for entry in lines(path) if case is None or entry.value.get("case") == case]
    if not entries:
        cases = sorted({str(entry.value.get("case")) for entry in lines(path)})
        raise lines(path)[0].fail(f"expected rows of the case {case!r}, got only {', '.join(cases)}")
    return Task(Path(path).stem, tuple(_row(entry) for entry in entries))


def _row(entry: Entry) -> Row:
    return Row(
        entry.text("clean_prefix"),
        entry.text("patch_prefix"),
        (entry.text("clean_answer"),),
        (entry.text("patch_answer"),),
        {},
        {"line": entry.line, "case": entry.value.get("case")},
    )
