"""One row of a task as a value: a pair of prompts, what is right and what is wrong, and who made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Score = Literal["difference", "probability", "logprob", "accuracy", "similarity"]
Reads = tuple[str, Literal["mean", "cls", "last"]]
"""What a similarity is of: a place in the model, and how its positions become one vector."""
Prompt = str | tuple[int, ...]
Place = tuple[str, int] | tuple[int, int]
"""The n-th occurrence of a text in the clean prompt, or start and end tokens (for prompts of ids)."""


@dataclass(frozen=True)
class Row:
    """One pair of prompts; answers are written as in the text, " Mary" with its blank."""

    clean: Prompt
    corrupt: Prompt
    answers: tuple[str | int, ...]
    wrong: tuple[str | int, ...] = ()
    positions: Mapping[str, Place] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    image: Any = None
    corrupt_image: Any = None


@dataclass(frozen=True)
class Recipe:
    """Which generator made the rows, and with which options."""

    generator: str
    """The name of the function that made the rows, as it was registered."""
    options: Mapping[str, Any]
    """What it was called with, by name, without the split."""
