"""Figures as matplotlib draws them: PDF, SVG and PNG for a paper.

8 points, the width of a column (3.25 inches, as in ICML) or of a page (5.5 inches, the text of NeurIPS and ICLR), fonts
embedded as TrueType (type 42), no dates: the same figure gives the same bytes. Numbers or minus signs are written into
maps, so that they read in grey. `drawn` gives the matplotlib figure itself, to be changed before it is saved. Limits:
letters that the fonts of this machine lack are written as their code points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from interp.kernels.errors import InterpError
from interp.results.figures.colours import INK, LESS, LINES, MORE, QUIET, Number, at, ink_on, shares
from interp.results.figures.marks import Bars, Heatmap, Lines, Link, Network, Panel, Trace, thinned
from interp.results.figures.still import laid_over

Width = str | float | int
WIDTHS: dict[str, float] = {"column": 3.25, "page": 5.5}
"""Inches."""
KINDS = (".pdf", ".svg", ".png")
POINTS = 8
STYLE: dict[str, Any] = {
    "font.size": POINTS, "axes.titlesize": POINTS, "axes.labelsize": POINTS, "xtick.labelsize": POINTS - 1,
    "ytick.labelsize": POINTS - 1, "legend.fontsize": POINTS - 1, "figure.titlesize": POINTS + 1,
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "interp", "svg.fonttype": "path", "text.usetex": False,
    "text.parse_math": False, "axes.linewidth": 0.5, "lines.linewidth": 1.1, "lines.markersize": 3,
    "xtick.major.width": 0.5, "ytick.major.width": 0.5, "xtick.major.size": 2, "ytick.major.size": 2,
    "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True, "legend.frameon": False,
    "savefig.dpi": 300, "figure.dpi": 100, "text.color": INK, "hatch.linewidth": 0.4,
}  # fmt: skip
FALLBACKS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Noto Sans", "FreeSans", "Unifont")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 3)))
MARKS = "os^Dv"
EDGES = {"q": "-", "k": (0, (5, 2)), "v": (0, (1.2, 1.5))}
LABEL = 26
"""Characters of a label."""


def save(
    panels: Sequence[Panel], path: str | Path, *, title: str = "", width: Width = "column", across: int, dpi: int = 300
) -> Path:
    """Write the figure; the kind of file is what the name ends in."""
    file = Path(path)
    if file.suffix not in KINDS:
        raise InterpError(f"figures are written as {', '.join(KINDS)}; got {file.name!r}.")
    if not file.parent.is_dir():
        raise InterpError(f"there is no folder {str(file.parent)!r} to write {file.name!r} to: make it first.")
    none = {".pdf": {"CreationDate": None, "Producer": None, "Creator": "interp"}, ".svg": {"Date": None},
            ".png": {"Software": None}}  # fmt: skip
    with _styled():
        drawn(panels, title=title, width=width, across=across).savefig(file, metadata=none[file.suffix], dpi=dpi)
    return file


def drawn(panels: Sequence[Panel], *, title: str = "", width: Width = "column", across: int) -> Any:
    """The figure of matplotlib."""
    _needed()
    from matplotlib.figure import Figure

    wide = _inches(width)
    columns = min(across, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _styled():
        heights = [max(_height(one, wide / columns) for one in panels[r * columns : (r + 1) * columns])
                   for r in range(rows)]  # fmt: skip
        figure = Figure((wide, sum(heights) + (0.25 if title else 0)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            _panel(axis, panel, wide / columns, keyed=not _alike(panels))
        if _alike(panels):
            _key(figure, list(axes), panels[0])
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        if title:
            figure.suptitle(_legible(title))
    return figure


def _needed() -> None:
    if find_spec("matplotlib") is None:
        raise InterpError(
            "figures as files need matplotlib, which is not installed: pip install 'interp[figures]'. `.plot()` and"
            " reports need nothing more."
        )


@contextmanager
def _styled() -> Iterator[None]:
    _needed()
    import matplotlib

    style: Any = STYLE | {"font.family": ["DejaVu Sans", *_families()]}
    with matplotlib.rc_context(style):
        yield


def _inches(width: Width) -> float:
    if isinstance(width, str):
        if width not in WIDTHS:
            raise InterpError(f"width is {' or '.join(map(repr, WIDTHS))} or a number of inches; got {width!r}.")
        return WIDTHS[width]
    if isinstance(width, bool) or not 0.5 <= width <= 100:
        raise InterpError(f"a figure is 0.5 to 100 inches wide; got width={width!r}.")
    return float(width)


@cache
def _families() -> tuple[str, ...]:
    """Which of the fonts with more letters are here."""
    from matplotlib import font_manager

    here = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in here)


@cache
def _letters() -> frozenset[int]:
    """The letters that can be written."""
    from matplotlib import font_manager

    files = [font_manager.findfont(name) for name in ("DejaVu Sans", *_families())]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def _legible(text: str) -> str:
    """Text on one line, what cannot be written as its code point."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if ord(c) in _letters() else f"[{ord(c):X}]" for c in shown)


def _label(labels: Sequence[str], n: int) -> str:
    text = _legible(str(labels[n]))
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _alike(panels: Sequence[Panel]) -> bool:
    """Whether all are grids with one scale, so that one key is enough."""
    keys = {(p.scale, p.limits, p.name) if isinstance(p, Heatmap) and p.numbers is None else None for p in panels}
    return len(panels) > 1 and len(keys) == 1 and None not in keys


def _height(panel: Panel, width: float) -> float:
    """Inches for a panel of that width."""
    titled = 0.2 if panel.title else 0.05
    if isinstance(panel, Heatmap):
        rows, columns = panel.array.shape
        room = width - 0.9
        cell = room / columns
        high = cell if panel.square or panel.picture is not None else min(cell, 0.28)
        if not panel.square and panel.array.size <= 200:
            high = min(0.28, max(high, 0.16))
        turned = 0.055 * max((len(_label(panel.columns, n)) for n in range(columns)), default=0) if len(
            panel.columns) and not _numbered(panel.columns) else 0.12  # fmt: skip
        return min(8.0, max(0.75, rows * high) + titled + turned + (0.2 if panel.x else 0) + 0.1)
    if isinstance(panel, Bars):
        return titled + 0.45 + 0.14 * len(panel.names) * max(1.0, 0.75 * len(panel.series))
    if isinstance(panel, Lines):
        return titled + (width if panel.square else max(1.6, 0.66 * width))
    if isinstance(panel, Network):
        return titled + min(8.0, max(1.2, 0.34 * len({round(up, 6) for _, _, up in panel.nodes})) + 0.25)
    raise TypeError(f"no panel: {type(panel).__name__}")


def _panel(axis: Any, panel: Panel, width: float, *, keyed: bool) -> None:
    if panel.title:
        axis.set_title(_legible(panel.title), pad=3)
    if isinstance(panel, Heatmap):
        _grid(axis, panel, width, keyed=keyed)
    elif isinstance(panel, Bars):
        _bars(axis, panel)
    elif isinstance(panel, Lines):
        _lines(axis, panel)
    elif isinstance(panel, Network):
        _network(axis, panel, width)
    else:
        raise TypeError(f"no panel: {type(panel).__name__}")


def _numbered(labels: Sequence[str]) -> bool:
    return all(str(label).lstrip("LH-").isdigit() for label in labels)


def _grid(axis: Any, grid: Heatmap, width: float, *, keyed: bool) -> None:
    rows, columns = grid.array.shape
    norm, colours = _scale(grid)
    if grid.picture is not None:
        axis.imshow(laid_over(grid), extent=(0, columns, rows, 0), interpolation="nearest")
    else:
        lines = 0.3 if max(rows, columns) <= 40 else 0
        known, many = np.ma.masked_invalid(grid.array), grid.array.size > 4000
        axis.pcolormesh(known, cmap=colours, norm=norm, edgecolors="#ffffff", linewidth=lines, rasterized=many)
        axis.set_facecolor("#ffffff")
        _written(axis, grid, 72 * (width - 0.9) / columns)
    axis.set(xlim=(0, columns), ylim=(rows, 0), xlabel=_legible(grid.x), ylabel=_legible(grid.y))
    axis.set_aspect("equal" if grid.square or grid.picture is not None else "auto")
    axis.tick_params(length=0)
    _ticks(axis, grid, width)
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color(QUIET)
    if keyed and grid.numbers is None:
        _key(axis.figure, axis, grid)


def _scale(grid: Heatmap) -> tuple[Any, Any]:
    """The numbers and the colours of a grid's scale."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    return Normalize(*grid.limits), LinearSegmentedColormap.from_list(grid.scale, [*shares(grid.scale)])


def _key(figure: Any, beside: Any, grid: Panel) -> None:
    """The scale next to one grid or several."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    assert isinstance(grid, Heatmap)
    bar = figure.colorbar(ScalarMappable(*_scale(grid)), ax=beside, fraction=0.05, pad=0.02, aspect=18)
    bar.outline.set_linewidth(0.4)
    bar.set_label(_legible(grid.name))
    bar.locator = MaxNLocator(3)
    bar.update_ticks()


def _written(axis: Any, grid: Heatmap, points: float) -> None:
    """Numbers or minus signs, where cells have room for them."""
    for row, column in np.ndindex(grid.array.shape):
        text = grid.text(row, column)
        size = min(POINTS - 1.5, 1.55 * points / max(2, len(text)))
        if text and size >= 2.8:
            fill = at(grid.scale, grid.share(grid.array[row, column]))
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink_on(fill))


def _ticks(axis: Any, grid: Heatmap, width: float) -> None:
    rows, columns = grid.array.shape
    if len(grid.columns):
        at_ = thinned(columns, int(72 * (width - 0.9) / (POINTS - 1.5 if not _numbered(grid.columns) else 12)))
        turned = 0 if _numbered(grid.columns) else 90
        axis.set_xticks([n + 0.5 for n in at_], [_label(grid.columns, n) for n in at_], rotation=turned)
    else:
        axis.set_xticks([])
    if len(grid.rows):
        high = 72 * (_height(grid, width) - 0.5)
        at_ = thinned(rows, max(2, int(high / (POINTS + 0.5))))
        axis.set_yticks([n + 0.5 for n in at_], [_label(grid.rows, n) for n in at_])
    else:
        axis.set_yticks([])
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        label.set_parse_math(False)  # also where the figure is drawn later, in another style


def _bars(axis: Any, bars: Bars) -> None:
    count = len(bars.series)
    places = np.arange(len(bars.names), dtype=float)
    for n, one in enumerate(bars.series):
        values = np.asarray(one.values, dtype=float)
        colours = [MORE if v > 0 else LESS for v in values] if count == 1 else LINES[n % len(LINES)]
        where = places + (n - (count - 1) / 2) * 0.8 / count
        axis.barh(where, np.nan_to_num(values), 0.76 / count, color=colours, label=_legible(one.name))
        if len(one.low):
            ends = np.stack([values - np.asarray(one.low, float), np.asarray(one.high, float) - values])
            known = np.isfinite(ends).all(0)
            axis.errorbar(values[known], where[known], xerr=np.maximum(ends[:, known], 0), fmt="none", ecolor=INK,
                          elinewidth=0.7, capsize=1.5, capthick=0.7)  # fmt: skip
    axis.axvline(0, color=INK, linewidth=0.5)
    axis.set_yticks(places, [_label(bars.names, n) for n in range(len(bars.names))])
    axis.set(xlabel=_legible(bars.y), ylabel=_legible(bars.x), ylim=(len(bars.names) - 0.4, -0.6))
    if bars.limits:
        axis.set_xlim(*bars.limits)
    if count > 1:
        axis.legend()


def _lines(axis: Any, shown: Lines) -> None:
    if shown.log:
        from matplotlib.ticker import FuncFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for n, line in enumerate(shown.lines):
        _line(axis, line, n)
    for name, value in shown.levels:
        axis.axhline(value, color=QUIET, linewidth=0.6, linestyle=(0, (2, 2)))
        axis.annotate(_legible(name), (0.01, value), xycoords=("axes fraction", "data"), ha="left", va="bottom",
                      fontsize=POINTS - 2, color=QUIET)  # fmt: skip
    for name, value in shown.marks:
        axis.axvline(value, color=INK, linewidth=0.9)
        axis.annotate(_legible(name), (value, 1), xycoords=("data", "axes fraction"), ha="right", va="top",
                      fontsize=POINTS - 1, xytext=(-2, 0), textcoords="offset points")  # fmt: skip
    if shown.ticks:
        from matplotlib.ticker import NullLocator

        axis.set_xticks(list(shown.ticks), [f"{value:g}" for value in shown.ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    if shown.names:
        some = thinned(len(shown.names), 20)
        axis.set_xticks(list(some), [_label(shown.names, n) for n in some], rotation=90)
    axis.set(xlabel=_legible(shown.x), ylabel=_legible(shown.y))
    if len(shown.lines) > 1:
        axis.legend()


def _line(axis: Any, line: Trace, n: int) -> None:
    colour, mark = LINES[n % len(LINES)], MARKS[n % len(MARKS)]
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    how: dict[str, Any] = {"color": colour, "marker": mark, "markerfacecolor": colour if n % 2 == 0 else "white"}
    if line.kind == "line":
        axis.plot(x, y, linestyle=DASHES[n % len(DASHES)], label=_legible(line.name), **how)
    else:
        axis.plot(
            x, y, linestyle="none", label=_legible(line.name), **how | ({"marker": "_"} if line.kind == "ticks" else {})
        )
    if len(line.low):
        low, high = np.asarray(line.low, float), np.asarray(line.high, float)
        known = np.isfinite(low) & np.isfinite(high)
        if line.kind == "line":
            axis.fill_between(x[known], low[known], high[known], color=colour, alpha=0.15, linewidth=0)
        else:
            axis.vlines(x[known], low[known], high[known], color=colour, linewidth=0.5)
    if len(line.labels) == len(x):
        for a, b, words in zip(x, y, line.labels, strict=True):
            if words:
                axis.annotate(_legible(words), (a, b), xytext=(3, 2), textcoords="offset points", fontsize=POINTS - 2)


def _network(axis: Any, network: Network, width: float) -> None:
    crowd = max(sum(round(u, 6) == round(up, 6) for _, _, u in network.nodes) for _, _, up in network.nodes)
    size = max(3.0, min(POINTS - 1, 72 * width / crowd / 5.2))
    for edge in network.edges:
        _edge(axis, edge, network.nodes[edge.start], network.nodes[edge.end])
    for name, across, up in network.nodes:
        axis.text(across, up, _legible(name), ha="center", va="center", fontsize=size, zorder=3,
                  bbox={"boxstyle": "round,pad=0.25", "fc": "#f4f4f4", "ec": INK, "lw": 0.4})  # fmt: skip
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.08, 1.06))
    axis.set_axis_off()
    if network.note:
        axis.text(0.5, -0.02, _legible(network.note), transform=axis.transAxes, ha="center", va="top",
                  fontsize=POINTS - 2.5, color=QUIET)  # fmt: skip


def _edge(axis: Any, edge: Link, start: tuple[str, Number, Number], end: tuple[str, Number, Number]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    shift = {"q": -0.012, "k": 0.0, "v": 0.012}.get(edge.kind, 0.0)
    (_, x1, y1), (_, x2, y2) = start, end
    middle = (y1 + y2) / 2
    corners = [(x1, y1), (x1, middle), (x2 + shift, middle), (x2 + shift, y2)]
    path = Curve(corners, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    colour, dash = LESS if edge.negative else MORE, EDGES.get(edge.kind, "-")
    patch = PathPatch(path, fill=False, edgecolor=colour, linewidth=0.3 + 1.7 * edge.size, linestyle=dash, zorder=1)
    axis.add_patch(patch)
