"""A figure as a value: panels, a title, and how many are in one row. It can be shown anywhere.

In a notebook it shows itself; `save` writes it for a paper, `plotly` and `matplotlib` hand it to those libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.kernels.errors import InterpError
from interp.results.figures import paper, screen, still
from interp.results.figures.marks import Panel
from interp.results.figures.paper import Width


@dataclass(frozen=True, eq=False)
class Figure:
    """What a figure shows; `e.figure()` and `interp.figures` make them."""

    panels: Sequence[Panel]
    """What is drawn, in order."""
    title: str = ""
    """The title above all panels."""
    across: int = 3
    """How many panels are in one row."""

    def __post_init__(self) -> None:
        if not len(self.panels) or self.across < 1:
            raise InterpError("a figure needs at least one panel, and across= of at least 1.")

    def save(self, path: str | Path, *, width: Width = "column", title: str | None = None, dpi: int = 300) -> Path:
        """Write a PDF, SVG or PNG for a paper (needs matplotlib): `width` is "column" (3.25 inches), "page" (5.5) or a
        number of inches; `dpi` is of PNG, and of pictures in the others."""
        title = self.title if title is None else title
        return paper.save(self.panels, path, title=title, width=width, across=self.across, dpi=dpi)

    def matplotlib(self, *, width: Width = "column") -> Any:
        """The same as a figure of matplotlib, to be changed."""
        return paper.drawn(self.panels, title=self.title, width=width, across=self.across)

    def plotly(self) -> Any:
        """The same as a figure of plotly."""
        return screen.drawn(self.panels, title=self.title, across=self.across)

    def svg(self) -> str:
        """A still picture, without a plotting library."""
        return still.picture(self.panels, title=self.title, across=self.across).svg()

    def png(self) -> bytes:
        """A still picture, without a plotting library."""
        return still.picture(self.panels, title=self.title, across=self.across).png()

    def titled(self, title: str) -> Figure:
        """The same under another title."""
        return replace(self, title=title)

    def __repr__(self) -> str:
        return f"Figure of {len(self.panels)} panel(s): {' '.join(map(still.said, self.panels))}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.plotly()._repr_mimebundle_()
        return data | {"text/plain": repr(self)}, metadata
