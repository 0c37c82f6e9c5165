"""Yes/no questions of POPE (Li et al., arXiv 2305.10355) and of RePOPE, which has the same fields and better labels.

One object a line: `question_id, image, text, label`. Which of the two a file is cannot be seen in it, only in its name;
the reader prints its guess, since figures of the two do not compare. `grade` gives POPE's figures, yes counting as
positive; an answer that starts with neither yes nor no is counted apart and as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.reading import Entry, FormatError, lines


@dataclass(frozen=True)
class PopeQuestion:
    """One question about one picture; `image` is a file name."""

    question_id: int
    image: str
    text: str
    label: Literal["yes", "no"]


@dataclass(frozen=True)
class PopeQuestions:
    """A file of questions, and whether its name says POPE or RePOPE."""

    version: Literal["POPE", "RePOPE"]
    """"POPE" or "RePOPE", by the name of the file."""
    questions: tuple[PopeQuestion, ...]
    """The questions, in the order of the file."""

    def __len__(self) -> int:
        return len(self.questions)

    def grade(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, precision, recall, f1, yes_ratio and the share of unclear answers."""
        if len(answers) != len(self):
            raise FormatError(f"expected {len(self)} answers, got {len(answers)}")
        said = [_said(answer) for answer in answers]
        truth = [question.label for question in self.questions]
        hits = sum(a == b == "yes" for a, b in zip(said, truth, strict=True))
        precision, recall = _share(hits, said.count("yes")), _share(hits, truth.count("yes"))
        return {
            "accuracy": _share(sum(a == b for a, b in zip(said, truth, strict=True)), len(said)),
            "precision": precision,
            "recall": recall,
            "f1": _share(2 * precision * recall, precision + recall),
            "yes_ratio": _share(said.count("yes"), len(said)),
            "unclear": _share(said.count(""), len(said)),
        }


def _said(answer: str) -> str:
    first = answer.strip().lower().split(maxsplit=1)[0].strip(".,!:;\"'") if answer.strip() else ""
    return first if first in ("yes", "no") else ""


def _share(part: float | int, whole: float | int) -> float:
    return part / whole if whole else 0.0


def pope(path: str | Path) -> PopeQuestions:
    """The questions of one file."""
    questions = tuple(_question(entry) for entry in lines(path))
    version: Literal["POPE", "RePOPE"] = "RePOPE" if "repope" in str(path).lower() else "POPE"
    print(f"{path}: {len(questions)} questions, {version} by its name")
    return PopeQuestions(version, questions)


def _question(entry: Entry) -> PopeQuestion:
    label = entry.text("label").strip().lower()
    if label not in ("yes", "no"):
        raise entry.fail(f"expected the label 'yes' or 'no', got {label!r}")
    return PopeQuestion(
        entry.whole("question_id"), entry.text("image"), entry.text("text"), "yes" if label == "yes" else "no"
    )
