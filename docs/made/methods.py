"""The page of methods, from their records: what each asks, its papers, cost and limits, its numbers, its choices."""

from __future__ import annotations

from collections.abc import Sequence

from made.words import table

from interp import records


def methods() -> str:
    """A table of every method (what it asks, its papers, its cost and its limits), one of its numbers, and the choices
    of those that have some."""
    every = records.every()
    return "\n".join(
        [
            "# Methods", "", "Made from the records of methods and their files' docstrings by `docs/build.py`.", "",
            *table(("call", "what it asks", "papers", "cost", "limits"), map(_asked, every)),
            "## What the numbers are", "",
            *table(("call", "numbers", "shown as", "needs", "not for"), map(_numbered, every)),
            *(line for method in every for line in _choices(method)),
        ]
    )  # fmt: skip


def _papers(record: records.Record) -> str:
    return ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in records.numbers_of(record))


def _asked(method: records.Method) -> Sequence[str]:
    said = records.asks(method), _papers(method), records.part(method, "Cost"), records.part(method, "Limits")
    return f"`{method.name}`", *said


def _numbered(method: records.Method) -> Sequence[str]:
    unfit = "; ".join(f"{kind}: {why}" for kind, why in method.unfit.items())
    return f"`{method.name}`", method.number, method.shown, ", ".join(method.needs), unfit


def _choices(method: records.Method) -> list[str]:
    """What an argument of the call may be."""
    found = list(records.variants(method.name).values())
    if not found:
        return []
    rows = [(f"`{one.name}`", one.number, _papers(one) if one.papers else "") for one in found]
    title = f"## `{method.name}({found[0].argument}=)`"
    return [title, "", *table((found[0].argument, "numbers", "papers"), rows)]
