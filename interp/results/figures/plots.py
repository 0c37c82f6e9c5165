"""The figures that results have in common: maps of heads and of effects, ranked bars, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.results.figures.colours import Number, Scale
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Heatmap, Lines, Series, Trace

NAMED = {"L": "layer", "H": "head"}


def bars(frame: Any, names: Any, *, unit: str = "effect", title: str = "") -> Figure:
    """The estimates of a table as bars with intervals."""
    ends = [frame[name].tolist() if name in frame else () for name in ("low", "high")]
    series = Series(unit, frame["estimate"].tolist(), *ends)
    return Figure([Bars([str(one) for one in names], [series], y=unit, title=title)])


def map_of_effects(array: Any, *, name: str = "effect", sure: Any = None, tokens: Sequence[str] = ()) -> Figure:
    """A labelled array of two axes or more as a map, the last axis across; `sure` has its shape, `tokens` name the
    positions."""
    *down, across = array.dims
    table = array.stack(row=down).transpose("row", across)
    known = None if sure is None else sure.stack(row=down).transpose("row", across).values
    rows = ["".join(f"{name[0].upper()}{value}" for name, value in zip(down, _tuple(row), strict=True))
            if "site" not in down else str(row) for row in table["row"].values]  # fmt: skip
    columns = [str(value) for value in array[across].values]
    if tokens and across == "position":
        columns = [f"{tokens[int(n)]}" for n in columns]
    return Figure([Heatmap(table.values, rows, columns, x=across, y=", ".join(down), name=name, sure=known)])


def map_of_heads(frame: Any, title: str, *, signed: bool = False) -> Figure:
    """One estimate a head as a map of layers x heads; for tables with layer, head and estimate. Without a sign the
    scale begins at 0."""
    several = "pass" in frame and frame["pass"].notna().any()
    index = ["layer", "pass"] if several else "layer"
    table = frame.pivot_table(index=index, columns="head", values="estimate", dropna=False)
    down = [f"{layer}@{nth:.0f}" for layer, nth in table.index] if several else [*map(str, table.index)]
    heads = [str(int(one)) for one in table.columns]
    scale: Scale = "signed" if signed or bool((table.values < 0).any()) else "size"
    return Figure([Heatmap(table.values, down, heads, x="head", y="layer", name=title, scale=scale)])


def line_of(name: str, part: Any, x: str, y: str, **how: Any) -> Trace:
    """Two columns of a table as a line, with its interval where the table has one."""
    low, high = (part[side].tolist() if side in part else () for side in ("low", "high"))
    return Trace(name, part[x].tolist(), part[y].tolist(), low, high, **how)


def by_site(frame: Any, columns: Mapping[str, str], *, y: str) -> Figure:
    """Columns of a table over its sites, a line each under the name given."""
    sites = [str(site) for site in frame["site"]]
    lines = [Trace(name, range(len(sites)), frame[column].tolist()) for name, column in columns.items()]
    return Figure([Lines(lines, x="site", y=y, names=sites)])


def scaled(values: Any, names: Sequence[str], sites: Sequence[str], *, per: str, x: str, y: str) -> Heatmap:
    """Measures [measure, head] on scales of their own, the fullest colour the largest magnitude of each; the numbers
    written are as measured."""
    array = np.asarray(values, dtype=np.float64)
    largest = np.nanmax(np.abs(np.nan_to_num(array)), 1, keepdims=True)
    share = array / np.where(largest > 0, largest, 1)
    scale: Scale = "signed" if bool((array < 0).any()) else "weight"
    if per == "column":
        share, array = share.T, array.T
        rows, columns = sites, names
    else:
        rows, columns = names, sites
    return Heatmap(share, list(rows), list(columns), x=x, y=y, name="each on its own scale", scale=scale, bound=1.0,
                numbers=array)  # fmt: skip


def pattern(weights: Any, tokens: Sequence[str], *, title: str = "", bound: Number | None = None) -> Heatmap:
    """One head's weights [query, key] on its tokens; keys that no query may see (exactly 0 above the diagonal) stay
    empty."""
    array = np.array(weights, dtype=np.float64)
    ahead = np.triu(np.ones(array.shape, dtype=bool), 1)
    if array.shape[0] == array.shape[1] and not array[ahead].any():
        array[ahead] = np.nan
    most = bound if bound is not None else float(np.nanmax(array)) or 1.0
    return Heatmap(array, list(tokens), list(tokens), x="key", y="query", name="weight", scale="weight", bound=most,
                title=title, square=True)  # fmt: skip


def _tuple(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)
