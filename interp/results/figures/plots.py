"""Quick figures of results (plotly). Numbers are written into small maps, so that the sign can be read in grey."""

from __future__ import annotations

from typing import Any

WRITTEN = 200
"""Maps of at most this many cells show their numbers."""


def error_bars(frame: Any, column: str = "estimate") -> dict[str, Any]:
    """The intervals of a table as plotly draws them; none where a row has none."""
    above, below = frame["high"] - frame[column], frame[column] - frame["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def bars(frame: Any, names: Any) -> Any:
    """The estimates of a table as bars with intervals."""
    import plotly.graph_objects as go

    bar = go.Bar(x=names, y=frame["estimate"], error_y=error_bars(frame))
    return go.Figure(bar).update_layout(yaxis_title="effect")


def map_of_effects(array: Any) -> Any:
    """A labelled array of two axes or more as a map, the last axis across."""
    import plotly.graph_objects as go

    *down, across = array.dims
    table = array.stack(row=down).transpose("row", across)
    rows = ["".join(f"{name[0].upper()}{value}" for name, value in zip(down, _tuple(row), strict=True))
            if "site" not in down else str(row) for row in table["row"].values]  # fmt: skip
    bound = float(abs(array).max()) or 1.0
    shown = {"texttemplate": "%{z:+.2g}"} if array.size <= WRITTEN else {}
    heat = go.Heatmap(z=table.values, x=array[across].values, y=rows, zmin=-bound, zmax=bound, colorscale="RdBu",
                      colorbar_title="effect", **shown)  # fmt: skip
    return go.Figure(heat).update_layout(xaxis_title=across, yaxis_title=", ".join(down), yaxis_autorange="reversed")


def map_of_heads(frame: Any, title: str) -> Any:
    """One estimate a head as a map of layers x heads, from 0 up; for tables with layer, head and estimate."""
    import plotly.graph_objects as go

    several = "pass" in frame and frame["pass"].notna().any()
    table = frame.pivot_table(index=["layer", "pass"] if several else "layer", columns="head", values="estimate")
    down = [f"{layer}@{nth:.0f}" for layer, nth in table.index] if several else table.index
    shown = {"texttemplate": "%{z:.2g}"} if table.size <= WRITTEN else {}
    heat = go.Heatmap(z=table.values, x=table.columns, y=down, colorscale="Blues", colorbar_title=title, **shown)
    return go.Figure(heat).update_layout(xaxis_title="head", yaxis_title="layer", yaxis_autorange="reversed")


def _tuple(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)
