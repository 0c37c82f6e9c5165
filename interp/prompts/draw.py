"""Seeded draws that every generator shares: the same on every machine, different for each generator and split."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal, TypeVar

from interp.prompts.vocabulary import TaskError

Split = Literal["train", "heldout"]
T = TypeVar("T")


def stream(name: str, seed: int, split: Split) -> random.Random:
    """A generator of random numbers; seeding by text is stable across versions of Python."""
    if split not in ("train", "heldout"):
        raise TaskError(f"expected a split 'train' or 'heldout', got {split!r}")
    return random.Random(f"{name} {seed} {split}")


def part(pool: Sequence[T], split: Split) -> tuple[T, ...]:
    """Every third member is held out, the others are for training."""
    kept = (i % 3 == 2 for i in range(len(pool))) if split == "heldout" else (i % 3 != 2 for i in range(len(pool)))
    return tuple(member for member, keep in zip(pool, kept, strict=True) if keep)


def where(text: str, word: str, nth: int = 1) -> tuple[str, int]:
    """The n-th time a text says a whole word, as (word, occurrence), counting what contains it as well: Ann in Anna."""
    starts = [found.start() for found in re.finditer(re.escape(word), text)]
    alone = [found.start() for found in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    return word, starts.index(alone[nth - 1]) + 1


def positive(n: int) -> int:
    """A number of rows, checked."""
    if n < 1:
        raise TaskError(f"expected at least one row, got n={n}")
    return n


def option(name: str, value: T, known: Sequence[T]) -> T:
    """An option among those known."""
    if value not in known:
        raise TaskError(f"expected {name} among {', '.join(map(repr, known))}, got {value!r}")
    return value
