"""The root of every exception the toolkit raises."""

from __future__ import annotations


class InterpError(Exception):
    """Something the toolkit refuses; the message says what was expected, what came, and what to do."""


class AttentionError(InterpError, ValueError):
    """An attention call whose shapes, mask, statistics or edits do not fit together."""
