"""What attention heads are known for, one published definition each, summed up a few rows at a time."""

from __future__ import annotations

from interp.head_kinds.keys import BROADCAST, DELIMITER
from interp.head_kinds.kind import Kind, Meter
from interp.head_kinds.page import Page
from interp.head_kinds.places import LOCAL, POSITIONAL
from interp.head_kinds.tokens import DUPLICATE, INDUCTION, PREFIX, PREFIX_LITERAL, PREVIOUS, SELF

KINDS: tuple[Kind, ...] = (
    PREVIOUS, SELF, DUPLICATE, INDUCTION, PREFIX, PREFIX_LITERAL, POSITIONAL, LOCAL, BROADCAST, DELIMITER,
)  # fmt: skip

__all__ = ["KINDS", "Kind", "Meter", "Page"]
