"""Prepared RULER files (Hsieh et al., arXiv 2404.06654): `{task}/{subset}.jsonl` with `index, input, outputs, length`.

`string_match` is RULER's own score: the share of outputs found in the answer, lower-cased; `any_match` (for question
answering) is 1 if any is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.reading import Entry, lines


@dataclass(frozen=True)
class RulerPrompt:
    """One prompt and what an answer must contain."""

    index: int
    """The number of the prompt in its file."""
    input: str
    """The text of the prompt, without the beginning of the answer."""
    outputs: tuple[str, ...]
    """The texts that an answer should contain."""
    length: int
    """The length of the prompt in tokens, as the file has it."""
    answer_prefix: str
    """The beginning of the answer, which follows the input; empty where the file has none."""
    meta: Mapping[str, Any]
    """All other fields of the line, by name."""

    @property
    def prompt(self) -> str:
        """The input with the beginning of the answer, if the file has one."""
        return self.input + self.answer_prefix

    def string_match(self, answer: str) -> float:
        """The share of outputs that the answer contains."""
        return sum(output.lower() in answer.lower() for output in self.outputs) / len(self.outputs)

    def any_match(self, answer: str) -> float:
        """1 if one of them does."""
        return float(any(output.lower() in answer.lower() for output in self.outputs))


def ruler(path: str | Path) -> tuple[RulerPrompt, ...]:
    """The prompts of one task."""
    return tuple(_prompt(entry) for entry in lines(path))


def _prompt(entry: Entry) -> RulerPrompt:
    known = ("index", "input", "outputs", "length", "answer_prefix")
    meta = {name: value for name, value in entry.value.items() if name not in known}
    return RulerPrompt(
        entry.whole("index"),
        entry.text("input"),
        entry.texts("outputs"),
        entry.whole("length"),
        str(entry.value.get("answer_prefix", "")),
        meta,
    )
