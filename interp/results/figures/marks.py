"""What a figure shows, as values: grids of numbers, bars, lines, networks. No marks know how they are drawn.

`paper` turns them into matplotlib, `screen` into plotly, `still` into the pictures of a report and of a saved notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.kernels.errors import InterpError
from interp.results.figures.colours import Number, Scale

WRITTEN = 200
"""Grids of at most this many cells show their numbers."""
SHOWN = 0.12
"""A negative cell of a larger grid has a minus in it where it reaches this share of the full colour."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Numbers of cells [row, column]; NaN is an empty cell."""

    values: Any
    """The numbers [row, column]."""
    rows: Sequence[str] = ()
    """A label for each row, or empty."""
    columns: Sequence[str] = ()
    """A label for each column, or empty."""
    x: str = ""
    """What the columns are."""
    y: str = ""
    """What the rows are."""
    name: str = ""
    """What the colour is."""
    scale: Scale = "signed"
    """"signed" from negative to positive, "size" for sizes, "weight" for weights that start at white."""
    bound: Number | None = None
    """The number of the fullest colour; the largest magnitude unless given."""
    numbers: Any = None
    """What is written and said, where colours are on scales of their own."""
    sure: Any = None
    """Bool [row, column]: where the interval leaves out 0, so that a sign may be shown. None: everywhere."""
    picture: Any = None
    """[row, column, 3] in 0 to 255: the picture under the grid."""
    title: str = ""
    """What is written above the grid."""
    square: bool = False
    """Whether cells are as high as they are wide."""

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 2 or not np.size(self.values):
            raise InterpError(
                f"a grid shows [row, column] with a cell at least, got the shape {np.shape(self.values)}."
            )
        for name, labels, count in zip(("rows", "columns"), (self.rows, self.columns), self.array.shape, strict=True):
            if len(labels) not in (0, count):
                raise InterpError(f"a grid of {count} {name} has {len(labels)} labels for them: give one for each.")

    @property
    def array(self) -> Any:
        """The numbers in float64."""
        return np.asarray(self.values, dtype=np.float64)

    @property
    def said(self) -> Any:
        """The numbers that are written."""
        return self.array if self.numbers is None else np.asarray(self.numbers, dtype=np.float64)

    @property
    def limits(self) -> tuple[Number, Number]:
        """The numbers at both ends of the scale."""
        known = self.array[np.isfinite(self.array)]
        high = self.bound if self.bound is not None else float(np.abs(known).max(initial=0.0)) or 1.0
        if self.scale == "signed":
            return -high, high
        return min(0.0, float(known.min(initial=0.0))), high

    def share(self, value: Number) -> float:
        """The place of a number on the scale, from 0 to 1."""
        low, high = self.limits
        return (value - low) / (high - low)

    def text(self, row: int, column: int) -> str:
        """What is written into a cell: its number where there is room, else a minus where it is clearly negative."""
        value, said = self.array[row, column], self.said[row, column]
        if not np.isfinite(value) or self.picture is not None:
            return ""
        if self.array.size <= WRITTEN:
            return short(said, signed=self.scale == "signed" and self._sure(row, column))
        clear = self.scale == "signed" and self._sure(row, column) and value < -SHOWN * self.limits[1]
        return "−" if clear else ""

    def _sure(self, row: int, column: int) -> bool:
        return self.sure is None or bool(np.asarray(self.sure)[row, column])


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers with their intervals, for bars."""

    name: str
    """What the bars are, for the legend."""
    values: Sequence[Number]
    """The length of each bar."""
    low: Sequence[Number] = ()
    """The lower end of each interval; empty for no intervals."""
    high: Sequence[Number] = ()
    """The upper end of each interval."""


@dataclass(frozen=True, eq=False)
class Bars:
    """One bar for each name, or several side by side."""

    names: Sequence[str]
    """The name of each bar, or of each group of bars."""
    series: Sequence[Series]
    """The numbers; each series has one bar at each name."""
    x: str = ""
    """What the names are."""
    y: str = ""
    """What the numbers are, with their unit."""
    title: str = ""
    """What is written above the bars."""
    limits: tuple[Number, Number] | None = None
    """The ends of the axis of numbers; None to fit the numbers."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Points over an axis, joined or not; `low` and `high` are a band."""

    name: str
    """What the points are, for the legend."""
    x: Sequence[Number]
    """The places of the points across."""
    y: Sequence[Number]
    """The heights of the points."""
    low: Sequence[Number] = ()
    """The lower end of the band at each point; empty for no band."""
    high: Sequence[Number] = ()
    """The upper end of the band at each point."""
    kind: Literal["line", "points", "ticks"] = "line"
    """"line" for points that are joined, "points" for points alone, "ticks" for short level lines."""
    labels: Sequence[str] = ()
    """What points are called; written where they are few."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines and points on common axes, with levels across and marks upright."""

    lines: Sequence[Trace]
    """The lines and points."""
    x: str = ""
    """What the axis across is."""
    y: str = ""
    """What the axis upwards is."""
    log: bool = False
    """Whether the axis across is logarithmic."""
    levels: Sequence[tuple[str, Number]] = ()
    """Level lines, as (name, height)."""
    marks: Sequence[tuple[str, Number]] = ()
    """Upright lines, as (name, place across)."""
    title: str = ""
    """What is written above the lines."""
    ticks: Sequence[Number] = ()
    """Where the axis across has its numbers, if not anywhere."""
    names: Sequence[str] = ()
    """The labels at 0, 1, 2 and so on, if places have names and not numbers."""
    square: bool = False
    """Whether the panel is as high as it is wide, in matplotlib."""


@dataclass(frozen=True, eq=False)
class Link:
    """A line between two nodes."""

    start: int
    """The number of the node that it begins at."""
    end: int
    """The number of the node that it ends at."""
    size: Number = 1.0
    """From 0 to 1."""
    kind: str = ""
    """"q", "k" or "v", each with its own dashes."""
    negative: bool = False
    """Whether its number is below 0, which gives it another colour."""
    said: str = ""
    """What is shown when the pointer is on it."""


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes [name, across, up] from 0 to 1, and edges between them."""

    nodes: Sequence[tuple[str, Number, Number]]
    """The nodes, as (name, place across, place upwards)."""
    edges: Sequence[Link]
    """The lines between nodes."""
    title: str = ""
    """What is written above the network."""
    note: str = ""
    """What is written below it."""


Panel = Heatmap | Bars | Lines | Network


def short(value: Number, *, signed: bool = False) -> str:
    """A number in four characters or so."""
    if not np.isfinite(value):
        return ""
    sign = "+" if signed else ""
    if value and (abs(value) < 0.005 or abs(value) >= 1000):
        return f"{value:{sign}.0e}".replace("e-0", "e-").replace("e+0", "e")
    if not value:
        return "0"
    return f"{value:{sign}.2f}" if abs(value) < 10 else f"{value:{sign}.0f}"


def thinned(count: int, room: int) -> range:
    """Which of so many labels are written where there is room for so many."""
    step = max(1, -(-count // max(1, room)))
    return range(0, count, step)
