"""The figures of a report: maps of heads, ranked bars, ablation curves, agreement, faithfulness.

Colours are blue, white and orange with zero in the middle, on one scale for all heads of a figure; numbers or signs are
written beside them, so that all figures read in grey. Each takes plain rows and returns a `Canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp.reporting.drawing.canvas import Canvas, Number, Point

BLUE, ORANGE = (33, 102, 172), (217, 95, 2)
LINES = ("#0b5394", "#b45309", "#555555", "#6d28d9")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
Row = Mapping[str, Any]


def shade(value: Number, bound: Number) -> str:
    """Blue for negative, orange for positive, white at zero."""
    share = max(-1.0, min(1.0, value / bound)) if bound else 0.0
    end = ORANGE if share > 0 else BLUE
    return "#" + "".join(f"{round(255 + (c - 255) * abs(share)):02x}" for c in end)


def _layer(row: Row) -> tuple[int, int]:
    """A row's layer, and its pass where there are several; -1 where there is one."""
    nth = row.get("pass")
    return row["layer"], -1 if nth is None or nth != nth else int(nth)


def head_map(rows: Sequence[Row], title: str) -> Canvas:
    """Layers down, heads across, one number a cell."""
    layers, heads = sorted({_layer(row) for row in rows}), sorted({row["head"] for row in rows})
    step, left, top = 42, 44, 44
    bound = max((abs(row["estimate"]) for row in rows if row["estimate"] == row["estimate"]), default=0.0)
    best = max(rows, key=lambda row: abs(row["estimate"]))
    canvas = Canvas(
        left + step * len(heads) + 16, top + 28 * len(layers) + 34, title,
        f"{len(rows)} heads; largest {best['site']} {best['estimate']:+.3g}; colours up to {bound:.3g}.",
    )  # fmt: skip
    canvas.text(left, 16, title, size=12)
    for n, head in enumerate(heads):
        canvas.text(left + step * (n + 0.5), top - 10, f"H{head}", anchor="middle", size=10)
    for n, (layer, nth) in enumerate(layers):
        name = f"L{layer}" if nth < 0 else f"L{layer}@{nth}"
        canvas.text(left - 6, top + 28 * (n + 0.5), name, anchor="end", size=10)
    for row in rows:
        x, y = left + step * heads.index(row["head"]), top + 28 * layers.index(_layer(row))
        canvas.rect(x, y, step - 2, 26, fill=shade(row["estimate"], bound), line="#bbbbbb")
        dark = bound and abs(row["estimate"]) > 0.65 * bound
        canvas.text(x + step / 2 - 1, y + 13, _short(row["estimate"]), anchor="middle", size=9,
                    fill="#ffffff" if dark else "#111111")  # fmt: skip
    canvas.text(left, top + 28 * len(layers) + 16, f"colour: 0 is white, ±{bound:.3g} is full", size=10)
    return canvas


def _short(value: Number) -> str:
    return f"{value:+.2f}" if 0.005 <= abs(value) < 100 else f"{value:+.0e}" if value else "0"


def bars(rows: Sequence[Row], title: str, *, unit: str = "effect") -> Canvas:
    """The first rows as bars with their intervals, downwards."""
    left, width, step = 110, 380, 20
    ends = [0.0] + [v for row in rows for v in (row["estimate"], row["low"], row["high"]) if v == v]
    low, high = min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1
    canvas = Canvas(left + width + 24, 44 + step * len(rows) + 40, title,
                    "; ".join(f"{row['site']} {row['estimate']:+.3g}" for row in rows[:5]) + ".")  # fmt: skip
    canvas.text(12, 16, title, size=12)

    def at(value: Number) -> Number:
        return left + width * (value - low) / (high - low)

    for n, row in enumerate(rows):
        y = 40 + step * n
        canvas.text(left - 8, y + 7, str(row["site"]), anchor="end", size=10)
        a, b = sorted((at(0.0), at(row["estimate"])))
        canvas.rect(a, y, max(1.0, b - a), 14, fill="#d9a066" if row["estimate"] > 0 else "#7aa6d6")
        if _known(row["low"]):
            canvas.line([(at(row["low"]), y + 7), (at(row["high"]), y + 7)], width=1.2)
    bottom = 40 + step * len(rows)
    canvas.line([(at(0.0), 34), (at(0.0), bottom)], colour="#444444", width=1)
    for value in (low, high):
        canvas.text(at(value), bottom + 12, f"{value:+.3g}", anchor="middle", size=9)
    canvas.text(left + width / 2, bottom + 26, unit, anchor="middle", size=10)
    return canvas


def curves(
    lines: Sequence[Row], title: str, *, x_title: str, y_title: str, log_x: bool = True, levels: Sequence[Any] = ()
) -> Canvas:
    """Lines over one axis, told apart by dashes and named at the side; bands are drawn as thin outlines."""
    left, top, width, height = 56, 44, 360, 220
    xs = [x for line in lines for x in line["x"]]
    ys = [y for line in lines for key in ("y", "low", "high") for y in (line.get(key) or ()) if _known(y)]
    ys += [v for _, v in levels]
    canvas = Canvas(left + width + 190, top + height + 56, title, f"{y_title} over {x_title}: "
                    + ", ".join(str(line["name"]) for line in lines) + ".")  # fmt: skip
    canvas.text(12, 16, title, size=12)
    x_at = _axis(min(xs), max(xs), left, left + width, log=log_x)
    y_at = _axis(min(ys), max(ys), top + height, top, log=False)
    canvas.rect(left, top, width, height, fill="#ffffff", line="#888888")
    for value in dict.fromkeys(lines[0]["x"]):
        canvas.text(x_at(value), top + height + 12, f"{value:g}", anchor="middle", size=9)
    for value in (min(ys), (min(ys) + max(ys)) / 2, max(ys)):
        canvas.text(left - 6, y_at(value), f"{value:.3g}", anchor="end", size=9)
    for name, value in levels:
        canvas.line([(left, y_at(value)), (left + width, y_at(value))], colour="#999999", width=0.8, dash="3 3")
        canvas.text(left + 6, y_at(value) - 6, str(name), size=9, fill="#555555")
    for n, line in enumerate(lines):
        _one(canvas, line, n, x_at, y_at, (left + width + 8, top + 16 + 34 * n))
    canvas.text(left + width / 2, top + height + 34, x_title, anchor="middle", size=10)
    canvas.text(12, 30, y_title, size=10)
    return canvas


def _known(value: Number | None) -> bool:
    """Whether there is a number: of one example there is no interval."""
    return value is not None and value == value


def _one(canvas: Canvas, line: Row, n: int, x_at: Any, y_at: Any, legend: Point) -> None:
    colour, dash = LINES[n % len(LINES)], DASHES[n % len(DASHES)]
    points = [(x_at(x), y_at(y)) for x, y in zip(line["x"], line["y"], strict=True)]
    alone = line.get("kind") == "points"
    for key in ("low", "high"):
        if line.get(key):
            ends = [(x_at(x), y_at(y)) for x, y in zip(line["x"], line[key], strict=True) if _known(y)]
            if ends:
                canvas.line(ends, colour=colour, width=0.6, dash="1 2")
    if len(points) > 1 and not alone:
        canvas.line(points, colour=colour, width=1.8, dash=dash)
    for x, y in points:
        canvas.dot(x, y, 2.5, fill=colour if n % 2 == 0 else "#ffffff", line=colour)
    x, y = legend
    canvas.line([(x, y), (x + 22, y)], colour=colour, width=1.8, dash=dash)
    canvas.dot(x + 11, y, 2.5, fill=colour if n % 2 == 0 else "#ffffff", line=colour)
    canvas.text(x, y + 13, str(line["name"]), size=10)


def _axis(low: Number, high: Number, start: Number, end: Number, *, log: bool) -> Any:
    def place(value: Number) -> Number:
        return math.log(value) if log and low > 0 else value

    span = place(high) - place(low) or 1.0
    margin = 0.04 * (end - start)
    return lambda value: start + margin + (end - start - 2 * margin) * (place(value) - place(low)) / span


def agreement_map(rows: Sequence[Row], title: str) -> Canvas:
    """Spearman correlation of every pair of methods, written into its square."""
    names = list(dict.fromkeys(name for row in rows for name in (row["first"], row["second"])))
    step, left, top = 74, 150, 40
    canvas = Canvas(left + step * len(names) + 20, top + 30 * len(names) + 40, title, "; ".join(
        f"{row['first']} and {row['second']} {row['spearman']:.2f}" for row in rows if row["spearman"] is not None
    ) + ".")  # fmt: skip
    canvas.text(12, 16, title, size=12)
    for n, name in enumerate(names):
        canvas.text(left - 8, top + 30 * (n + 0.5), str(name), anchor="end", size=10)
        canvas.text(left + step * (n + 0.5), top + 30 * len(names) + 14 + 11 * (n % 2), str(name), anchor="middle",
                    size=9)  # fmt: skip
    for row in rows:
        if row["spearman"] is None:
            continue
        for a, b in ((row["first"], row["second"]), (row["second"], row["first"])):
            x, y = left + step * names.index(b), top + 30 * names.index(a)
            canvas.rect(x, y, step - 2, 28, fill=shade(row["spearman"], 1.0), line="#bbbbbb")
            canvas.text(x + step / 2, y + 14, f"{row['spearman']:.2f}", anchor="middle", size=10,
                        fill="#ffffff" if abs(row["spearman"]) > 0.65 else "#111111")  # fmt: skip
    return canvas


def drawn(curve: Mapping[str, Any]) -> Canvas:
    """A curve as the page has it."""
    return curves(
        curve["lines"], curve["title"], x_title=curve["x_title"], y_title=curve["y_title"], levels=curve["levels"]
    )
