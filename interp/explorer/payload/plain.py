"""Values as JSON holds them: numbers short, arrays as lists, strings as they are. Refuses what JSON cannot say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.kernels.errors import InterpError

DIGITS = 6
"""Significant digits of numbers in a page; exact values belong in files next to it."""


class ExplorerError(InterpError, ValueError):
    """A payload that does not make a page."""


def plain(value: Any, where: str) -> Any:
    """The same as dicts, lists, strings, numbers and None; NaN becomes None, which means "not known"."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return rounded(value, where)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch, arrays and single values
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(inner, where) for inner in ordered]
    if isinstance(value, Path):
        return str(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    raise ExplorerError(
        f"{where} holds a {type(value).__name__}, and a page cannot hold that: give numbers, strings or lists."
    )


def rounded(value: int | float, where: str) -> int | float | None:
    """A number in few characters."""
    if isinstance(value, int):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise ExplorerError(f"{where} is infinite: leave it out, or give None where nothing was measured.")
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def columns_of(rows: Any, where: str) -> tuple[list[str], list[list[Any]]]:
    """A pandas frame or a list of dicts as names and columns."""
    if hasattr(rows, "columns"):
        names = [str(name) for name in rows.columns]
        return names, [plain(list(rows.iloc[:, n]), f"{where}.{name}") for n, name in enumerate(names)]
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise ExplorerError(f"{where} is a pandas frame or a list of dicts, got {type(rows).__name__}.")
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    return names, [[plain(row.get(name), f"{where}.{name}") for row in rows] for name in names]


def only(given: Any, known: set[str], where: str) -> None:
    """Refuse keys that nothing reads."""
    if not isinstance(given, Mapping):
        raise ExplorerError(f"{where} is a dict, got {type(given).__name__}.")
    if strange := set(map(str, given)) - known:
        raise ExplorerError(f"{where} has {', '.join(sorted(strange))}; it may have {', '.join(sorted(known))}.")


def pairs(given: Any, where: str, *, both: Callable[[Any], Any] = lambda value: value) -> list[list[Any]]:
    """Names and values, in order."""
    items = list(given.items()) if isinstance(given, Mapping) else list(given)
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and not isinstance(pair, str) for pair in items):
        raise ExplorerError(f"{where} is a list of pairs (name, value).")
    return [[str(name), both(plain(value, where))] for name, value in items]
