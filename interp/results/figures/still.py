"""Figures as still pictures, SVG and PNG, with no plotting library: for reports, and for notebooks that are only read.

Limits: one face, whose PNG has no letters beyond Latin, Greek and Cyrillic; at most `MOST` cells a side are drawn one
by one, larger grids are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interp.results.figures.canvas import Canvas, Number
from interp.results.figures.colours import INK, LESS, LINES, MORE, PAPER, QUIET, at, ink_on, parts
from interp.results.figures.marks import Bars, Heatmap, Lines, Link, Network, Panel, Trace, short, thinned

CHARACTER = 6.2
"""About how wide a character of size 10 is."""
LABEL = 30
"""Characters of a label."""
MOST = 220
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2")
KINDS = {"q": "", "k": "7 3", "v": "2 3"}
GAP = 14
Place = Callable[[Number], Number]


def picture(panels: Sequence[Panel], *, title: str = "", across: int = 3) -> Canvas:
    """All panels on one canvas, a few in each row."""
    sizes = [_size(panel) for panel in panels]
    rows = [range(n, min(n + across, len(panels))) for n in range(0, len(panels), across)]
    top = 26 if title else 4
    width = max(sum(sizes[n][0] + GAP for n in row) for row in rows)
    high = [max(sizes[n][1] for n in row) + GAP for row in rows]
    canvas = Canvas(round(max(width, 160, len(title) * 7 + 16)), round(top + sum(high)), title or said(panels[0]),
                    " ".join(map(said, panels)))  # fmt: skip
    if title:
        canvas.text(8, 14, title, size=12)
    for row, down in zip(rows, np.cumsum([0, *high[:-1]]).tolist(), strict=True):
        x = 4.0
        for n in row:
            _drawn(canvas, panels[n], x, top + down)
            x += sizes[n][0] + GAP
    return canvas


def said(panel: Panel) -> str:
    """What a panel shows, in a sentence for a screen reader."""
    if isinstance(panel, Heatmap):
        row, column = np.unravel_index(int(np.nanargmax(np.abs(np.nan_to_num(panel.array)))), panel.array.shape)
        best = f"{_label(panel.rows, int(row))} {_label(panel.columns, int(column))}"
        what = f"{panel.title or panel.name or 'numbers'}: {panel.array.shape[0]} x {panel.array.shape[1]} cells"
        return f"{what}; largest {best} {panel.said[row, column]:+.3g}."
    if isinstance(panel, Bars):
        pairs = zip(panel.names, panel.series[0].values, strict=True)
        return "; ".join(f"{name} {value:+.3g}" for name, value in [*pairs][:5]) + "."
    if isinstance(panel, Lines):
        return f"{panel.y} over {panel.x}: {', '.join(line.name for line in panel.lines)}."
    if isinstance(panel, Network):
        return f"{len(panel.nodes)} nodes and {len(panel.edges)} edges. {panel.note}"
    raise TypeError(f"no panel: {type(panel).__name__}")


def _drawn(canvas: Canvas, panel: Panel, x: Number, y: Number) -> None:
    if panel.title:
        canvas.text(x + 4, y + 10, panel.title, size=11)
    y += 22 if panel.title else 4
    if isinstance(panel, Heatmap):
        _grid(canvas, panel, x, y)
    elif isinstance(panel, Bars):
        _bars(canvas, panel, x, y)
    elif isinstance(panel, Lines):
        _lines(canvas, panel, x, y)
    elif isinstance(panel, Network):
        _network(canvas, panel, x, y)
    else:
        raise TypeError(f"no panel: {type(panel).__name__}")


def _size(panel: Panel) -> tuple[Number, Number]:
    """Width and height with everything around it."""
    titled = 22 if panel.title else 4
    if isinstance(panel, Heatmap):
        left, top, cell, high = _measures(panel)
        count = panel.array.shape
        return max(left + min(count[1], MOST) * cell + 8, 190), titled + top + min(count[0], MOST) * high + 54
    if isinstance(panel, Bars):
        return 520, titled + 18 * len(panel.names) * len(panel.series) + 40 + 14 * (len(panel.series) > 1)
    if isinstance(panel, Lines):
        return 64 + 340 + 190, titled + 220 + 46
    if isinstance(panel, Network):
        return _extent(panel)[0], titled + _extent(panel)[1] + 20
    raise TypeError(f"no panel: {type(panel).__name__}")


def _label(labels: Sequence[str], n: int) -> str:
    text = str(labels[n]) if len(labels) else str(n)
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _measures(grid: Heatmap) -> tuple[Number, Number, Number, Number]:
    """Room at the left and above, width and height of a cell."""
    rows, columns = grid.array.shape
    names = [_label(grid.rows, n) for n in range(rows)] if len(grid.rows) else [""]
    left = 26 + CHARACTER * max(map(len, names))
    written = grid.array.size <= 200 and grid.picture is None
    cell = 40 if written and not grid.square else min(24.0, max(2.0, 340 / columns))
    high = 24 if written and not grid.square else min(24.0, max(2.0, 340 / rows)) if not grid.square else cell
    return left, (4 if not len(grid.columns) else 16 + _upward(grid, cell)), cell, high


def _upward(grid: Heatmap, cell: Number) -> Number:
    """How high labels above columns are, where they must be upright."""
    longest = max(len(_label(grid.columns, n)) for n in range(len(grid.columns)))
    return 5.4 * longest if longest * CHARACTER > cell + 2 and not _numbered(grid.columns) else 0


def _numbered(labels: Sequence[str]) -> bool:
    return all(str(label).lstrip("LH-").isdigit() for label in labels)


def _grid(canvas: Canvas, grid: Heatmap, x: Number, y: Number) -> None:
    left, top, cell, high = _measures(grid)
    values, columns = grid.array, grid.array.shape[1]
    if max(values.shape) > MOST:
        values = averaged(values, MOST)
    x0, y0, (down, wide) = x + left, y + top, values.shape
    if grid.picture is not None:
        canvas.image(x0, y0, wide * cell, down * high, laid_over(grid))
    else:
        for r, c in np.argwhere(np.isfinite(values)).tolist():
            fill = at(grid.scale, grid.share(values[r, c]))
            canvas.rect(x0 + c * cell, y0 + r * high, cell, high, fill=fill, line="#dddddd" if cell > 8 else None)
            text = grid.text(r, c) if values.shape == grid.array.shape else ""
            if text and cell > 8:
                canvas.text(x0 + (c + 0.5) * cell, y0 + (r + 0.5) * high, text, size=9 if cell > 30 else 7,
                            anchor="middle", fill=ink_on(fill))  # fmt: skip
        canvas.line([(x0, y0), (x0 + wide * cell, y0), (x0 + wide * cell, y0 + down * high), (x0, y0 + down * high),
                     (x0, y0)], colour=QUIET, width=0.5)  # fmt: skip
    _labels(canvas, grid, (x0, y0), (wide * cell / columns, down * high / grid.array.shape[0]))
    bottom = y0 + down * high
    canvas.text(x0 + wide * cell / 2, bottom + 10, grid.x, anchor="middle", size=10)
    if grid.y:
        canvas.text(x + 4, y0 - 8, grid.y, size=10)
    _key(canvas, grid, x0, bottom + 22)


def _labels(canvas: Canvas, grid: Heatmap, corner: tuple[Number, Number], cell: tuple[Number, Number]) -> None:
    (x0, y0), (wide, high), (rows, columns) = corner, cell, grid.array.shape
    if len(grid.rows):
        for n in thinned(rows, int(rows * high / 10)):
            canvas.text(x0 - 5, y0 + (n + 0.5) * high, _label(grid.rows, n), anchor="end", size=9)
    if len(grid.columns):
        turned = _upward(grid, wide) > 0
        for n in thinned(columns, int(columns * wide / (10 if turned else 16))):
            middle = x0 + (n + 0.5) * wide
            if turned:
                canvas.upright(middle, y0 - 4, _label(grid.columns, n), size=9)
            else:
                canvas.text(middle, y0 - 8, _label(grid.columns, n), anchor="middle", size=9)


def _key(canvas: Canvas, grid: Heatmap, x: Number, y: Number) -> None:
    """The scale as a small bar with its ends."""
    low, high = grid.limits
    if grid.numbers is not None:
        canvas.text(x, y + 5, grid.name or "each on its own scale", size=9, fill=QUIET)
        return
    for n in range(30):
        canvas.rect(x + 3 * n, y, 3.2, 8, fill=at(grid.scale, (n + 0.5) / 30))
    canvas.text(x, y + 17, f"{low:.3g}", size=9)
    canvas.text(x + 90, y + 17, f"{high:.3g}", size=9, anchor="end")
    canvas.text(x + 98, y + 5, grid.name, size=9)


def averaged(values: Any, most: int) -> Any:
    """A grid with at most so many cells a side, each the mean of its neighbours."""
    rows, columns = (np.array_split(np.arange(n), min(n, most)) for n in values.shape)
    down = np.stack([np.nanmean(values[r], 0) for r in rows])
    return np.stack([np.nanmean(down[:, c], 1) for c in columns], 1)


def laid_over(grid: Heatmap, strength: float = 0.65) -> Any:
    """The picture with the grid's colours over it, stronger where numbers are larger."""
    from PIL import Image

    base = np.asarray(grid.picture, dtype=np.uint8)
    base = np.asarray(Image.fromarray(base).resize((max(96, base.shape[1]), max(96, base.shape[0]))))
    values = np.nan_to_num(grid.array)
    full = grid.limits[1] or 1.0
    colours = np.array([[parts(at(grid.scale, grid.share(v))) for v in row] for row in values], dtype=np.uint8)
    weight = np.asarray(strength * np.clip(np.abs(values) / full, 0, 1) ** 0.5, dtype=np.float32)
    size = base.shape[1], base.shape[0]
    wide = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
    amount = np.asarray(Image.fromarray(weight).resize(size, Image.Resampling.NEAREST))[..., None]
    return (base * (1 - amount) + wide * amount).round().astype(np.uint8)


def _bars(canvas: Canvas, bars: Bars, x: Number, y: Number) -> None:
    count, left, width = len(bars.series), 118, 370
    ends = [0.0, *(v for s in bars.series for some in (s.values, s.low, s.high) for v in some if v == v)]
    low, high = bars.limits or (min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1)
    place = _axis(low, high, x + left, x + left + width)
    for n, name in enumerate(bars.names):
        canvas.text(x + left - 8, y + 18 * (n * count + count / 2), str(name)[:LABEL], anchor="end", size=10)
        for s, one in enumerate(bars.series):
            _bar(canvas, one, n, place, y + 18 * (n * count + s), LINES[s] if count > 1 else None)
    bottom = y + 18 * count * len(bars.names)
    canvas.line([(place(0.0), y - 3), (place(0.0), bottom)], colour="#444444", width=1)
    for value in dict.fromkeys((low, 0.0, high)):
        canvas.text(place(value), bottom + 9, f"{value:.3g}", anchor="middle", size=9)
    canvas.text(x + left + width / 2, bottom + 23, bars.y, anchor="middle", size=10)
    for s, one in enumerate(bars.series if count > 1 else ()):
        canvas.rect(x + left + 120 * s, bottom + 31, 9, 9, fill=LINES[s])
        canvas.text(x + left + 120 * s + 14, bottom + 36, one.name, size=9)


def _bar(canvas: Canvas, one: Any, n: int, place: Place, y: Number, colour: str | None) -> None:
    value = one.values[n]
    if value != value:
        return
    start, end = sorted((place(0.0), place(value)))
    canvas.rect(start, y + 2, max(1.0, end - start), 14, fill=colour or (MORE if value > 0 else LESS))
    if len(one.low) and one.low[n] == one.low[n]:
        canvas.line([(place(one.low[n]), y + 9), (place(one.high[n]), y + 9)], width=1.2, colour=INK)


def _axis(low: Number, high: Number, start: Number, end: Number, *, log: bool = False) -> Place:
    def scaled(value: Number) -> float:
        return math.log(value) if log and low > 0 else value

    span = (scaled(high) - scaled(low)) or 1.0
    margin = 0.04 * (end - start)
    return lambda value: start + margin + (end - start - 2 * margin) * (scaled(value) - scaled(low)) / span


def _lines(canvas: Canvas, shown: Lines, x: Number, y: Number) -> None:
    left, width, height = x + 64, 340, 200
    xs = [v for line in shown.lines for v in line.x] + [v for _, v in shown.marks]
    ys = [v for line in shown.lines for some in (line.y, line.low, line.high) for v in some if v == v]
    ys += [v for _, v in shown.levels]
    x_at = _axis(min(xs), max(xs), left, left + width, log=shown.log)
    y_at = _axis(min(ys), max(ys), y + 16 + height, y + 16)
    canvas.rect(left, y + 16, width, height, fill=PAPER, line="#888888")
    canvas.text(x + 4, y + 6, shown.y, size=10)
    if shown.names:
        for n in thinned(len(shown.names), 5):
            canvas.text(x_at(n), y + 26 + height, _label(shown.names, n)[:12], anchor="middle", size=8)
    for value in () if shown.names else dict.fromkeys(shown.ticks or _spaced(min(xs), max(xs))):
        canvas.text(x_at(value), y + 26 + height, f"{value:.3g}", anchor="middle", size=9)
    for value in _spaced(min(ys), max(ys)):
        canvas.text(left - 6, y_at(value), f"{value:.3g}", anchor="end", size=9)
    for name, value in shown.levels:
        canvas.line([(left, y_at(value)), (left + width, y_at(value))], colour="#999999", width=0.8, dash="3 3")
        canvas.text(left + 6, y_at(value) - 6, name, size=9, fill=QUIET)
    for name, value in shown.marks:
        canvas.line([(x_at(value), y + 16), (x_at(value), y + 16 + height)], colour=INK, width=1)
        canvas.text(x_at(value) + 4, y + 26, name, size=9)
    for n, line in enumerate(shown.lines):
        _line(canvas, line, n, x_at, y_at)
        _named(canvas, line, n, left + width + 10, y + 22 + 16 * n)
    canvas.text(left + width / 2, y + 42 + height, shown.x, anchor="middle", size=10)


def _spaced(low: Number, high: Number) -> list[Number]:
    return [low, (low + high) / 2, high] if high > low else [low]


def _line(canvas: Canvas, line: Trace, n: int, x_at: Place, y_at: Place) -> None:
    colour, dash = LINES[n % len(LINES)], DASHES[n % len(DASHES)]
    for ends in (line.low, line.high):
        points = [(x_at(a), y_at(b)) for a, b in zip(line.x, ends, strict=bool(len(ends))) if b == b]
        if points:
            canvas.line(points, colour=colour, width=0.6, dash="1 2")
    points = [(x_at(a), y_at(b)) for a, b in zip(line.x, line.y, strict=True) if b == b]
    if len(points) > 1 and line.kind == "line":
        canvas.line(points, colour=colour, width=1.8, dash=dash)
    for k, (a, b) in enumerate(points):
        if line.kind == "ticks":
            canvas.line([(a - 5, b), (a + 5, b)], colour=colour, width=0.8)
        else:
            canvas.dot(a, b, 2.5, fill=colour if n % 2 == 0 else PAPER, line=colour)
        if len(line.labels) == len(points) <= 24:
            canvas.text(a + 4, b - 6, str(line.labels[k]), size=8)


def _named(canvas: Canvas, line: Trace, n: int, x: Number, y: Number) -> None:
    colour = LINES[n % len(LINES)]
    if line.kind == "line":
        canvas.line([(x, y), (x + 22, y)], colour=colour, width=1.8, dash=DASHES[n % len(DASHES)])
    canvas.dot(x + 11, y, 2.5, fill=colour if n % 2 == 0 else PAPER, line=colour)
    canvas.text(x + 28, y, line.name[:26], size=10)


def _extent(network: Network) -> tuple[Number, Number]:
    levels = {round(up, 6): 0 for _, _, up in network.nodes}
    for _, _, up in network.nodes:
        levels[round(up, 6)] += 1
    return max(360, 74 * max(levels.values())), max(120, 46 * len(levels))


def _network(canvas: Canvas, network: Network, x: Number, y: Number) -> None:
    width, height = _extent(network)
    places = [(x + 36 + a * (width - 72), y + 14 + (1 - u) * (height - 28)) for _, a, u in network.nodes]
    for edge in network.edges:
        _edge(canvas, edge, places[edge.start], places[edge.end])
    for (name, _, _), (a, b) in zip(network.nodes, places, strict=True):
        canvas.rect(a - 30, b - 9, 60, 18, fill="#f4f4f4", line=INK)
        canvas.text(a, b, name, anchor="middle", size=9)
    canvas.text(x + 8, y + height + 8, network.note, size=9, fill=QUIET)


def _edge(canvas: Canvas, edge: Link, start: tuple[Number, Number], end: tuple[Number, Number]) -> None:
    shift = {"q": -14, "k": 0, "v": 14}.get(edge.kind, 0)
    (x1, y1), (x2, y2) = (start[0], start[1] - 9), (end[0] + shift, end[1] + 11)
    colour = LESS if edge.negative else MORE
    curve = []
    for t in np.linspace(0, 1, 13).tolist():
        bend = 3 * t * t - 2 * t**3
        curve.append((x1 + (x2 - x1) * bend, y1 + (y2 - y1) * t))
    canvas.line(curve, colour=colour, width=0.5 + 2.5 * edge.size, dash=KINDS.get(edge.kind, ""))
    canvas.dot(x2, y2, 2.5, fill=PAPER if edge.negative else colour, line=colour)


__all__ = ["averaged", "laid_over", "picture", "said", "short"]
