"""What a metric is called where people read it: a function by its name, a lambda by what it computes, others as they
say themselves. Without the address in memory that Python would print, so that the same work gives the same bytes."""

from __future__ import annotations

import ast
import functools
import linecache
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

SHORT = 60
"""Characters of a lambda's text."""
UNSEEN = "your metric"


def metric_name(metric: Any) -> str:
    """The metric in words that fit in a caption."""
    if isinstance(metric, functools.partial):
        return metric_name(metric.func)
    if isinstance(metric, FunctionType) and metric.__name__ == "<lambda>":
        return _lambda(metric.__code__)
    if isinstance(metric, FunctionType | MethodType | BuiltinFunctionType):
        return metric.__name__
    said = repr(metric)
    return type(metric).__name__ if " at 0x" in said else said


def unit(said: Any) -> str:
    """What `metric_name` said, without the arguments of a shipped metric: `LogitDifference`."""
    text = str(said or "")
    start = text.partition("(")[0]
    return start if start.isidentifier() else text


def _lambda(code: CodeType) -> str:
    text = _text(code)
    return UNSEEN if text is None else text if len(text) <= SHORT else f"{text[: SHORT - 1].rstrip()}…"


def _text(code: CodeType) -> str | None:
    """What a lambda computes, from the file or the cell that it was written in; None where that cannot be read."""
    source = "".join(linecache.getlines(code.co_filename))
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the file has changed since, or holds no Python
        return None
    starts = {(line, column) for line, _, column, _ in code.co_positions() if line is not None and column is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno and _first(node.body) in starts:
            return " ".join((ast.get_source_segment(source, node.body) or UNSEEN).split())
    return None


def _first(body: ast.expr) -> tuple[int, int]:
    return body.lineno, body.col_offset
