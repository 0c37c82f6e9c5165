"""Figures as plotly draws them, for a notebook; each carries its still picture, so that a notebook that is only read
(GitHub, nbconvert, mail) shows something. The background is clear and the writing grey, so that both themes read well.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from interp.results.figures.colours import LESS, LINES, MORE, Number, shares
from interp.results.figures.marks import WRITTEN, Bars, Heatmap, Lines, Network, Panel, Trace
from interp.results.figures.still import picture

GREY = "#757575"
"""Read on white (4.6 to 1) and on the dark of notebooks (4.1 to 1)."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
KINDS = {"q": "solid", "k": "dash", "v": "dot"}


def drawn(panels: Sequence[Panel], *, title: str = "", across: int = 3) -> Any:
    """A figure of plotly with all panels."""
    figure = _kind()()
    columns = min(across, len(panels))
    if len(panels) > 1:
        from plotly.subplots import make_subplots

        rows = -(-len(panels) // columns)
        names = [panel.title for panel in panels]
        figure = _kind()(make_subplots(rows, columns, subplot_titles=names))
    for n, panel in enumerate(panels):
        where = {"row": n // columns + 1, "col": n % columns + 1} if len(panels) > 1 else {}
        _panel(figure, panel, where)
    one = panels[0].title if len(panels) == 1 else ""
    figure.update_layout(title=title or one or None, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
                         font_color=GREY)  # fmt: skip
    still = picture(panels, title=title, across=across)
    figure._still, figure._said = still.png(), still.said
    return figure


@cache
def _kind() -> Any:
    import plotly.graph_objects as go

    class Shown(go.Figure):
        """A plotly figure that shows a picture where there is no script; changes made to it later are not in that."""

        _still: bytes = b""
        _said: str = ""
        _ipython_display_ = None
        _repr_html_ = None  # plotly's loads a script from elsewhere

        def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            bundle = {"text/plain": f"Figure({len(self.data)} traces)", "application/vnd.plotly.v1+json": _plain(self)}
            if not self._still:
                return bundle, {}
            return bundle | {"image/png": base64.b64encode(self._still).decode()}, {"image/png": {"alt": self._said}}

    return Shown


def _plain(figure: Any) -> Any:
    import json

    return json.loads(figure.to_json()) | {"config": {"responsive": True, "displaylogo": False}}


def _panel(figure: Any, panel: Panel, where: dict[str, int]) -> None:
    if isinstance(panel, Heatmap):
        _grid(figure, panel, where)
    elif isinstance(panel, Bars):
        _bars(figure, panel, where)
    elif isinstance(panel, Lines):
        _lines(figure, panel, where)
    elif isinstance(panel, Network):
        _network(figure, panel, where)
    else:
        raise TypeError(f"no panel: {type(panel).__name__}")


def _grid(figure: Any, grid: Heatmap, where: dict[str, int]) -> None:
    import plotly.graph_objects as go

    rows, columns = grid.array.shape
    low, high = grid.limits
    if grid.picture is not None:
        pixels = np.asarray(grid.picture)
        dy, dx = (cells / long for cells, long in zip(grid.array.shape, pixels.shape[:2], strict=True))
        figure.add_trace(go.Image(z=pixels, dx=dx, dy=dy, x0=(dx - 1) / 2, y0=(dy - 1) / 2), **where)
    words = [[grid.text(r, c) for c in range(columns)] for r in range(rows)] if grid.array.size <= WRITTEN else []
    shown = {"text": words, "texttemplate": "%{text}"} if words and grid.picture is None else {}
    down, along = (list(grid.rows) or [*range(rows)], list(grid.columns) or [*range(columns)])
    below, beside = len(set(down)) == rows, len(set(along)) == columns  # plotly puts cells of one name into one place
    figure.add_trace(
        go.Heatmap(z=grid.array, customdata=grid.said, x=along if beside else None, y=down if below else None,
                   zmin=low, zmax=high, colorscale=[list(pair) for pair in shares(grid.scale)],
                   colorbar_title=grid.name or None, showscale=grid.numbers is None and not where,
                   opacity=1.0 if grid.picture is None else 0.6,
                   hovertemplate="%{y}, %{x}: %{customdata:.4g}<extra></extra>", **shown), **where)  # fmt: skip
    figure.update_xaxes(title_text=grid.x or None, type="category" if beside and len(grid.columns) else None, **where)
    figure.update_yaxes(title_text=grid.y or None, autorange="reversed",
                        type="category" if below and len(grid.rows) else None, **where)  # fmt: skip
    if not beside:
        figure.update_xaxes(tickvals=[*range(columns)], ticktext=[str(one) for one in along], **where)
    if not below:
        figure.update_yaxes(tickvals=[*range(rows)], ticktext=[str(one) for one in down], **where)
    if (grid.square or grid.picture is not None) and not where:
        figure.update_yaxes(scaleanchor="x")


def _bars(figure: Any, bars: Bars, where: dict[str, int]) -> None:
    import plotly.graph_objects as go

    for n, one in enumerate(bars.series):
        values = np.asarray(one.values, float)
        error = _errors(values, one.low, one.high) if len(one.low) else None
        colours = [MORE if v > 0 else LESS for v in values] if len(bars.series) == 1 else LINES[n % len(LINES)]
        bar = go.Bar(x=list(bars.names), y=values, error_y=error, name=one.name, marker_color=colours)
        figure.add_trace(bar, **where)
    figure.update_xaxes(title_text=bars.x or None, **where)
    figure.update_yaxes(title_text=bars.y or None, range=list(bars.limits) if bars.limits else None, **where)


def _errors(values: Any, low: Sequence[Number], high: Sequence[Number]) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": np.asarray(high, float) - values,
            "arrayminus": values - np.asarray(low, float)}  # fmt: skip


def _lines(figure: Any, shown: Lines, where: dict[str, int]) -> None:
    for n, line in enumerate(shown.lines):
        figure.add_trace(_line(line, n), **where)
    for name, value in shown.levels:
        figure.add_hline(y=value, line_dash="dot", line_color=GREY, annotation_text=name, **where)
    for name, value in shown.marks:
        figure.add_vline(x=value, annotation_text=name, **where)
    named = {"tickvals": [*range(len(shown.names))], "ticktext": list(shown.names)} if shown.names else {}
    named |= {"tickvals": list(shown.ticks)} if shown.ticks and not shown.names else {}
    figure.update_xaxes(title_text=shown.x or None, type="log" if shown.log else None, **named, **where)
    figure.update_yaxes(title_text=shown.y or None, **where)


def _line(line: Trace, n: int) -> Any:
    import plotly.graph_objects as go

    colour, y = LINES[n % len(LINES)], np.asarray(line.y, float)
    symbols = {"ticks": "line-ew-open"}
    mode = "lines+markers" if line.kind == "line" else "markers+text" if 0 < len(line.labels) <= 24 else "markers"
    return go.Scatter(
        x=list(line.x), y=list(line.y), name=line.name, mode=mode, text=list(line.labels) or None,
        textposition="top center", error_y=_errors(y, line.low, line.high) if len(line.low) else None,
        line={"color": colour, "dash": DASHES[n % len(DASHES)]},
        marker={"color": colour, "symbol": symbols.get(line.kind, "circle")},
    )  # fmt: skip


def _network(figure: Any, network: Network, where: dict[str, int]) -> None:
    import plotly.graph_objects as go

    for edge in network.edges:
        (_, x1, y1), (_, x2, y2) = network.nodes[edge.start], network.nodes[edge.end]
        line = {
            "color": LESS if edge.negative else MORE,
            "width": 0.5 + 3 * edge.size,
            "dash": KINDS.get(edge.kind, "solid"),
        }
        figure.add_trace(go.Scatter(x=[x1, (x1 + x2) / 2, x2], y=[y1, (y1 + y2) / 2, y2], mode="lines", line=line,
                                    hovertext=edge.said, hoverinfo="text", showlegend=False), **where)  # fmt: skip
    names, across, up = zip(*network.nodes, strict=True)
    figure.add_trace(go.Scatter(x=across, y=up, text=names, mode="markers+text", textposition="middle right",
                                marker={"color": GREY, "size": 9}, showlegend=False), **where)  # fmt: skip
    figure.update_xaxes(visible=False, **where)
    figure.update_yaxes(visible=False, **where)
