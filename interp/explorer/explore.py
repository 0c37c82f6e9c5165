"""Heads to look at: a map, a scatter, where each head looks on real tokens and pictures, in one page without a network.

`interp.explore(m, data)` gives a plain object. In a notebook it shows itself, as a page in a frame where HTML is
trusted and as a still picture elsewhere; `.save("heads.html")` writes a file that anyone can open; `.live()` is a
widget whose selection Python reads and sets. Results given (`results={"patch": effects}`) become measures of the map
in addition to the statistics of attention, and `circuit=` is drawn. Cost: three forward passes of the data (statistics,
patterns, what heads promote), and two more a further tower; one more where of large pictures some rows are kept.
Limits: attention weights say where a head reads from, not what it does: patch to know. Patterns of long inputs are a
sample of rows, in texts with their largest keys; numbers in the page have six digits; `.save` of the results keeps all.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.explorer.build import payload
from interp.explorer.live import live, script
from interp.explorer.page import page
from interp.explorer.picture import png
from interp.records import Method, register
from interp.saving import renamed

if TYPE_CHECKING:
    from interp.model import Model

HEIGHT = 820


@dataclass(frozen=True, eq=False)
class Explorer:
    """What there is to see; `payload` is a plain dict that may be added to before it is shown."""

    payload: dict[str, Any]
    """What the page shows, as plain dicts, lists, numbers and strings."""

    @cached_property
    def page(self) -> str:
        """The page as HTML."""
        return page(self.payload)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, whole or not at all."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        renamed(file, self.page.encode())
        return file

    def picture(self, method: str | None = None) -> bytes:
        """The map of heads as a PNG, coloured by the first measure or by the one that is named."""
        return png(self.payload, method=method)

    def live(self, *, height: int = HEIGHT) -> Any:
        """A widget (anywidget) whose `.selection` goes both ways: `w.selection = {"head": "L1.H2"}`."""
        return live(self.payload, height=height, still=self._repr_mimebundle_())

    def __repr__(self) -> str:
        return f"Explorer: {self.payload['title']}. {self.payload.get('finding') or ''}".strip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """A still picture and a line of text for where HTML is dropped; a frame that may run its own script only."""
        frame = (
            f'<div><iframe data-interp title="{html.escape(self.payload["title"])}" width="100%" height="{HEIGHT}"'
            f' style="border:0" sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(self.page)}"></iframe>'
            f"<script>{_beside()}</script></div>"
        )
        return {"text/plain": repr(self), "image/png": base64.b64encode(self.picture()).decode(), "text/html": frame}


@cache
def _beside() -> str:
    """A script that tells the frame what theme the notebook has; where it does not run, the page has the system's."""
    new = "document.querySelectorAll('iframe[data-interp]:not([data-told])')"
    each = f"for (const one of {new}) {{ one.dataset.told = ''; keepTheme(one); }}"
    return f"(() => {{\n{script('frame')}\n{each}\n}})();"


def explore(
    model: Model,
    data: Any,
    *,
    results: Mapping[str, Any] | Sequence[Any] = (),
    circuit: Any = None,
    examples: int | None = None,
    pictures: Sequence[Any] | None = None,
    title: str | None = None,
) -> Explorer:
    """The heads of a model on `data`: texts, `Inputs` or a task. `results` are values with a table of heads, by name
    or in order; `examples` says of how many rows patterns are shown,
    two to four as there is room if not given; `pictures` are those of the data (PIL), read off
    a task or the model's pixels if not given."""
    return Explorer(
        payload(model, data, results=results, circuit=circuit, examples=examples, pictures=pictures, title=title)
    )


register(
    Method(
        "interp.explore",
        number="statistics of attention, each in its unit, and the results that are given",
        shown="page",
        passes=lambda t: 1 + 2 * len(t.model.anatomy.towers),
        values=None,
        example=lambda t: explore(t.model, t.base),
    )
)
