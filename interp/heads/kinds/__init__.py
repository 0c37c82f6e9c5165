"""What attention heads are known for, one published definition each, summed up a few rows at a time: of a head's own
sequence (`KINDS`), and of the other one that cross-attention looks at (`alignment`, `crossing`)."""

from __future__ import annotations

from interp.heads.kinds.keys import BROADCAST, DELIMITER
from interp.heads.kinds.kind import Kind, Meter
from interp.heads.kinds.page import Page
from interp.heads.kinds.places import LOCAL, POSITIONAL
from interp.heads.kinds.tokens import DUPLICATE, INDUCTION, PREFIX, PREFIX_LITERAL, PREVIOUS, SELF

KINDS: tuple[Kind, ...] = (
    PREVIOUS, SELF, DUPLICATE, INDUCTION, PREFIX, PREFIX_LITERAL, POSITIONAL, LOCAL, BROADCAST, DELIMITER,
)  # fmt: skip

__all__ = ["KINDS", "Kind", "Meter", "Page"]
