"""The one table of colours: the page, notebooks and papers draw with these and with no others.

Negative numbers are blue, positive ones orange, and 0 is nearly white. Both sides get darker evenly, so that a grey
print still shows the size; the sign is then read from what is written in a cell. Blue and orange look different to all
common kinds of colour blindness. Sizes without a sign go along cividis (Nunez et al. 2018); attention weights start at
white.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Number = float | int
Scale = Literal["signed", "size", "weight"]

NEGATIVE = ("#f7f7f7", "#c3dcec", "#7fb2d9", "#3a7dbb", "#12467f")
POSITIVE = ("#f7f7f7", "#fddcae", "#f8ab59", "#d96f14", "#853a05")
SIZE = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
STOPS: dict[Scale, tuple[str, ...]] = {"signed": (*NEGATIVE[::-1], *POSITIVE[1:]), "size": SIZE, "weight": POSITIVE}
"""Each scale from its low end to its high end, evenly."""
LINES = ("#12467f", "#d96f14", "#595959", "#6d28d9", "#948e77")
"""Lines and groups of bars, which also differ by their dashes and marks."""
LESS, MORE = NEGATIVE[3], POSITIVE[3]
"""Bars below and above 0."""
INK, QUIET, PAPER = "#111111", "#595959", "#ffffff"
DARK = 0.2
"""Relative luminance below which writing on a colour is white."""


def at(scale: Scale, share: Number) -> str:
    """The colour at a share from 0 to 1 of a scale."""
    stops = STOPS[scale]
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    n = min(int(place), len(stops) - 2)
    pairs = zip(parts(stops[n]), parts(stops[n + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - n)):02x}" for a, b in pairs)


def parts(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(colour: str) -> float:
    """How light a colour is, from 0 to 1."""
    red, green, blue = ((v / 255) ** 2.2 for v in parts(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(colour: str) -> str:
    """Black or white, whichever is read on it."""
    return INK if luminance(colour) > DARK else PAPER


def shares(scale: Scale) -> Sequence[tuple[float, str]]:
    """The stops with their places, as plotting libraries take them."""
    stops = STOPS[scale]
    return [(n / (len(stops) - 1), colour) for n, colour in enumerate(stops)]
