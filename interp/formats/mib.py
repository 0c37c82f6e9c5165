"""Rows of the MIB benchmark (Mueller et al., arXiv 2504.13151), as JSONL or parquet: IOI, multiple choice, arithmetic.

Three kinds of row differ by their fields: `metadata` with `indirect_object` and `subject` (IOI), `choices` with
`answerKey` (MCQA and ARC), `label` (arithmetic). `counterfactual` names the field that holds the other prompt; without
it the benchmark's usual one is taken: `s2_io_flip_counterfactual`, `symbol_counterfactual`, `random_counterfactual`.
The wrong answer is what the counterfactual's right answer is, for IOI the subject.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.hooks.sealed import understood
from interp.prompts.rows import Row
from interp.reading import Entry, FormatError, lines, parquet
from interp.tasks.task import Task

USUAL = {
    "metadata": "s2_io_flip_counterfactual",
    "choices": "symbol_counterfactual",
    "label": "random_counterfactual",
}


def mib(path: str | Path, *, counterfactual: str | None = None) -> Task:
    """The file as a task, scored by a logit difference."""
    entries = _parquet(Path(path)) if Path(path).suffix == ".parquet" else lines(path)
    return Task(Path(path).stem, tuple(_row(entry, counterfactual) for entry in entries))


def _parquet(file: Path) -> list[Entry]:
    with understood(file):
        rows = json.loads(parquet(file).to_json(orient="records"))
    if not rows:
        raise FormatError(f"{file}: no rows")
    return [Entry(file, i, row) for i, row in enumerate(rows, 1)]


def _row(entry: Entry, counterfactual: str | None) -> Row:
    kind = next((name for name in USUAL if name in entry.value), None)
    if kind is None:
        raise entry.fail(f"expected one of the fields {', '.join(USUAL)}, got {', '.join(map(repr, entry.value))}")
    other = entry.inside(counterfactual or USUAL[kind])
    right, wrong = {"metadata": _names, "choices": _letters, "label": _labels}[kind](entry, other)
    if right == wrong:
        raise entry.fail(f"expected a counterfactual with another answer, got {right!r} for both; choose another one")
    return Row(entry.text("prompt"), other.text("prompt"), (right,), (wrong,), {}, {"line": entry.line, "kind": kind})


def _names(entry: Entry, other: Entry) -> tuple[str, str]:
    said = entry.inside("metadata")
    return f" {said.text('indirect_object').strip()}", f" {said.text('subject').strip()}"


def _letters(entry: Entry, other: Entry) -> tuple[str, str]:
    return _letter(entry), _letter(other)


def _letter(entry: Entry) -> str:
    labels, index = entry.inside("choices").texts("label"), entry.whole("answerKey")
    if not 0 <= index < len(labels):
        raise entry.fail(f"expected 'answerKey' below {len(labels)}, got {index}")
    return f" {labels[index].strip()}"


def _labels(entry: Entry, other: Entry) -> tuple[str, str]:
    return _label(entry), _label(other)


def _label(entry: Entry) -> str:
    entry.need("label")
    value: Any = entry.value["label"]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise entry.fail(f"expected a text or a whole number in 'label', got {value!r}")
    return str(value)
