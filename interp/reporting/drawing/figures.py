"""The figures of a report, from plain rows: maps of heads, ranked bars, ablation curves, agreement.

Each returns a `Figure` of `interp.results.figures`, drawn in the same colours as pages, notebooks and papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Heatmap, Lines, Series, Trace

Row = Mapping[str, Any]


def _layer(row: Row) -> tuple[int, int]:
    """A row's layer, and its pass where there are several; -1 where there is one."""
    nth = row.get("pass")
    return row["layer"], -1 if nth is None or nth != nth else int(nth)


def head_map(rows: Sequence[Row], title: str) -> Figure:
    """Layers down, heads across, one number a cell; a sign where the interval, if there is one, leaves out 0."""
    layers, heads = sorted({_layer(row) for row in rows}), sorted({row["head"] for row in rows})
    values, sure = np.full((len(layers), len(heads)), np.nan), np.zeros((len(layers), len(heads)), dtype=bool)
    for row in rows:
        at = layers.index(_layer(row)), heads.index(row["head"])
        values[at], sure[at] = row["estimate"], _clear(row)
    names = [f"L{layer}" if nth < 0 else f"L{layer}@{nth}" for layer, nth in layers]
    across = [f"H{int(head)}" for head in heads]
    return Figure([Heatmap(values, names, across, x="head", name="effect", sure=sure)], title)


def _clear(row: Row) -> bool:
    """Whether a row's number is distinguished from 0, as far as it is known."""
    low, high, floor = row.get("low"), row.get("high"), row.get("noise_floor")
    if low is not None and high is not None and low <= 0 <= high and low < high:
        return False
    return not _known(floor) or abs(row["estimate"]) > floor


def bars(rows: Sequence[Row], title: str, *, unit: str = "effect") -> Figure:
    """The first rows as bars with their intervals, downwards."""
    columns = [[math.nan if row[name] is None else float(row[name]) for row in rows] for name in
               ("estimate", "low", "high")]  # fmt: skip
    return Figure([Bars([str(row["site"]) for row in rows], [Series(unit, *columns)], y=unit)], title)


def curves(
    lines: Sequence[Row], title: str, *, x_title: str, y_title: str, log_x: bool = True, levels: Sequence[Any] = ()
) -> Figure:
    """Lines over one axis, with different dashes, named at the side."""
    made = [_line(line) for line in lines]
    marked = [(str(name), float(value)) for name, value in levels]
    ticks = tuple(dict.fromkeys(lines[0]["x"]))
    shown = Lines(made, x=x_title, y=y_title, log=log_x, levels=marked, ticks=ticks if len(ticks) <= 8 else ())
    return Figure([shown], title)


def _line(row: Row) -> Trace:
    """A line of a curve as the page has it; None is no number."""
    y, low, high = ([math.nan if v is None else float(v) for v in row.get(side) or ()] for side in ("y", "low", "high"))
    return Trace(str(row["name"]), row["x"], y, low, high, kind="points" if row.get("kind") == "points" else "line")


def _known(value: float | None) -> bool:
    """Whether there is a number: of one example there is no interval."""
    return value is not None and value == value


def agreement_map(rows: Sequence[Row], title: str) -> Figure:
    """Spearman correlation of every pair of methods, written into its square."""
    names = list(dict.fromkeys(name for row in rows for name in (row["first"], row["second"])))
    values = np.full((len(names), len(names)), np.nan)
    for row in rows:
        a, b = names.index(row["first"]), names.index(row["second"])
        values[a, b] = values[b, a] = np.nan if row["spearman"] is None else row["spearman"]
    return Figure([Heatmap(values, names, names, name="Spearman", bound=1.0)], title)


def drawn(curve: Mapping[str, Any]) -> Figure:
    """A curve as the page has it."""
    return curves(
        curve["lines"], curve["title"], x_title=curve["x_title"], y_title=curve["y_title"], levels=curve["levels"]
    )
