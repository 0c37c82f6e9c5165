"""The root of every exception the toolkit raises, and how a table of what is known is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class InterpError(Exception):
    """Something the toolkit refuses; the message says what was expected, what came, and what to do."""


class AttentionError(InterpError, ValueError):
    """An attention call whose shapes, mask, statistics or edits do not fit together."""


def said(thing: object) -> str:
    """A type, a type with a name, or a name, as a sentence says it: `Gate`, `Blend to uniform`, `entropy`."""
    if isinstance(thing, tuple):
        return " to ".join(map(said, thing))
    return thing.__name__ if isinstance(thing, type) else str(thing)


def known(table: Mapping[K, V], key: K, what: str) -> V:
    """What the table has for the key; an error that names the key where it has nothing, never a default."""
    if key not in table:
        raise AttentionError(f"{what} {said(key)} is not one of {', '.join(map(said, table))}")
    return table[key]
