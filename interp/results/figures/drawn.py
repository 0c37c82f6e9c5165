"""What every result does with its figure: hand it out, write it, show it."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from interp.hooks.html import block, line, rows_of
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.paper import Width


class Drawn:
    """A value with a figure, which `_figure` makes."""

    def _figure(self, *args: Any, **which: Any) -> Figure:
        raise InterpError(f"a {type(self).__name__} has no figure: use its tables.")

    def figure(
        self,
        path: str | Path | None = None,
        *args: Any,
        width: Width = "column",
        title: str | None = None,
        **which: Any,
    ) -> Figure:
        """Its figure as a value, which shows itself in a notebook; also written to `path` (PDF, SVG or PNG), if given,
        in the width of a "column" (3.25 inches), a "page" (5.5) or so many inches. What else is given says what is
        drawn."""
        made = self._figure(*args, **which)
        made = made if title is None else made.titled(title)
        if path is not None:
            made.save(path, width=width)
        return made

    def plot(self, *args: Any, **which: Any) -> Any:
        """Its figure as plotly has it; what is given says what is drawn."""
        return self._figure(*args, **which).plotly()

    def _repr_html_(self) -> str:
        """What it says, its largest rows, and its figure."""
        return block(line(repr(self)), rows_of(self), self._pictured())

    def _pictured(self) -> str:
        try:
            data = base64.b64encode(self._figure().png()).decode()
        except InterpError:  # it says itself that it has none, or what it would have to be asked for
            return ""
        picture = f'<img alt="{escape(repr(self))}" style="max-width:100%" src="data:image/png;base64,{data}">'
        return f"<details open><summary>figure</summary>{picture}</details>"
