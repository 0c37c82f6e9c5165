"""Figures that need more than one result, each one call: attention on tokens, heads side by side, two measures
against each other, maps over a picture.

What one result shows is `result.figure("x.pdf")`. All give a `Figure`: it shows itself in a notebook, `path` (or its
`save`) writes PDF, SVG or PNG, `.matplotlib()` and `.plotly()` hand it to those libraries. Colours are those of the
page and of reports. Cost: `attention` runs the model once; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_of, layer_name
from interp.hooks.sites import numbers, parse
from interp.kernels.errors import InterpError
from interp.results.figures.colours import Scale
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Heatmap, Lines, Link, Network, Series, Trace
from interp.results.figures.over_image import pixels_of
from interp.results.figures.paper import Width
from interp.results.figures.plots import pattern
from interp.results.heads_table import largest, method_of, read_heads

if TYPE_CHECKING:
    from interp.model import Model

LONGEST = 128
"""Tokens of a pattern that can still be read."""
NAMED = 8
"""Points of a scatter that have names."""


def attention(
    model: Model,
    inputs: Any,
    heads: str | Sequence[str],
    path: str | Path | None = None,
    *,
    row: int = 0,
    positions: Sequence[int] | None = None,
    across: int = 3,
    width: Width = "page",
) -> Figure:
    """The patterns of heads on the tokens of one row, side by side and on one scale. `heads` are sites such as
    "L1.H7" or ["L0.H*", "L1.H2"]; `positions` takes some tokens only."""
    x = model.prepare(inputs) if not hasattr(inputs, "kwargs") else inputs
    if x.tokens is None:
        raise InputsError("these inputs have no tokens; for a picture see interp.figures.over_picture.")
    names = [f"{one.removesuffix('.pattern').removesuffix('.z')}.pattern" for one in _listed(heads)]
    at = x.valid[row].nonzero().flatten().tolist() if positions is None else list(positions)
    if len(at) > LONGEST:
        raise InputsError(f"a pattern of {len(at)} tokens cannot be read: take at most {LONGEST} by positions=.")
    tape, words = model.run(x, record=names, store="cpu"), [x.tokens[row][n] for n in at]
    panels = []
    for site in (site for name in names for site in model.sites(name)):
        every = tape[site][row].float().numpy()
        asked = parse(site).heads or "*"
        known = range(len(every)) if asked == "*" else numbers(str(asked), range(1 << 16), what="head", text=site)
        for weights, head in zip(every, known, strict=True):
            panels.append((f"{layer_name(site)}.H{head}", weights[np.ix_(at, at)]))
    most = max(float(weights.max()) for _, weights in panels)
    return _made(
        [pattern(one, words, title=name, bound=most) for name, one in panels], path, across=across, width=width
    )


def scatter(
    first: Any, second: Any, path: str | Path | None = None, *, names: tuple[str, str] | None = None,
    n: int = NAMED, width: Width = "column",
) -> Figure:  # fmt: skip
    """Heads by two measures, each a result or a table with site and estimate; the n farthest out have their names."""
    one, two = (read_heads(result) for result in (first, second))
    x, y = names or _apart(method_of(first), method_of(second))
    both = one[["site", "estimate"]].assign(site=_bare(one)).merge(
        two[["site", "estimate"]].assign(site=_bare(two)), on="site", suffixes=("_x", "_y"), validate="one_to_one"
    )  # fmt: skip
    if both.empty:
        raise InterpError(
            f"the two have no head in common: {one['site'].iloc[0]!r} there, {two['site'].iloc[0]!r} here."
        )
    far = sum((both[c] / (both[c].abs().max() or 1)) ** 2 for c in ("estimate_x", "estimate_y"))
    named = set(far.sort_values(ascending=False, kind="stable").index[:n])
    labels = [site if k in named else "" for k, site in both["site"].items()]
    rank = float(both["estimate_x"].rank().corr(both["estimate_y"].rank()))
    dots = Trace(
        f"{len(both)} heads", both["estimate_x"].tolist(), both["estimate_y"].tolist(), kind="points", labels=labels
    )
    title = f"{len(both)} heads, Spearman {rank:.2f}"
    return _made([Lines([dots], x=x, y=y, square=True, title=title)], path, width=width)


def bars(result: Any, path: str | Path | None = None, *, n: int = 12, width: Width = "column") -> Figure:
    """The n heads of a result, or of a table with site and estimate, that have the largest numbers, with intervals."""
    rows = largest(read_heads(result), n)
    ends = [rows[name].tolist() if name in rows else () for name in ("low", "high")]
    series = Series(method_of(result), rows["estimate"].tolist(), *ends)
    return _made([Bars(rows["site"].tolist(), [series], y=series.name)], path, width=width)


def over_picture(
    grids: Any, picture: Any = None, path: str | Path | None = None, *, names: Sequence[str] = (), signed: bool = True,
    across: int = 3, width: Width = "page",
) -> Figure:  # fmt: skip
    """Numbers of patches [row, column], or several such grids, over their picture (PIL or [row, column, 3]): attention
    (`signed=False`), effects (`Effects.over_image` reads them off a result) or relevance."""
    array = np.asarray(grids, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise InterpError(f"grids are [row, column] or [grid, row, column], got the shape {array.shape}.")
    each = array[None] if array.ndim == 2 else array
    if names and len(names) != len(each):
        raise InterpError(f"{len(each)} grids have {len(names)} names: give one for each.")
    bound, pixels = float(np.nanmax(np.abs(each))) or 1.0, None if picture is None else pixels_of(picture)
    scale: Scale = "signed" if signed else "weight"
    panels, name = [], "effect" if signed else "weight"
    for n, one in enumerate(each):
        title = names[n] if names else ""
        panels.append(Heatmap(one, name=name, scale=scale, picture=pixels, square=True, bound=bound, title=title))
    return _made(panels, path, across=across, width=width)


def beside(
    figures: Sequence[Figure], path: str | Path | None = None, *, across: int = 2, width: Width = "page"
) -> Figure:
    """The panels of several figures as one figure."""
    return _made([panel for one in figures for panel in one.panels], path, across=across, width=width)


def _made(panels: Sequence[Any], path: str | Path | None, *, across: int = 3, width: Width) -> Figure:
    figure = Figure(panels, across=across)
    if path is not None:
        figure.save(path, width=width)
    return figure


def _listed(heads: str | Sequence[str]) -> list[str]:
    return [heads] if isinstance(heads, str) else list(heads)


def _bare(frame: Any) -> list[str]:
    """Heads without what of them was measured, so that z and pattern are of one head."""
    return [head_of(str(site)) for site in frame["site"]]


def _apart(x: str, y: str) -> tuple[str, str]:
    return (x, y) if x != y else (f"{x} (first)", f"{y} (second)")


__all__ = [
    "Bars",
    "Figure",
    "Heatmap",
    "Lines",
    "Link",
    "Network",
    "Series",
    "Trace",
    "attention",
    "bars",
    "beside",
    "over_picture",
    "scatter",
]  # fmt: skip
