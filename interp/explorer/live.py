"""A live view in a notebook (anywidget): what is selected in the page is known to Python, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from interp.explorer.page import page
from interp.kernels.errors import InterpError

HEIGHT = 900


def live(payload: Mapping[str, Any], *, height: int = HEIGHT, still: Mapping[str, str] | None = None) -> Any:
    """A widget with a `.selection` (head, pins, metric, token, example) that can be read, set and observed; `still` is
    what a saved notebook shows in its place."""
    if find_spec("anywidget") is None:
        raise InterpError(
            "the live view needs anywidget, which is not installed: pip install 'interp[notebooks]', or use the plain"
            " object, which shows the same page without a way back to Python."
        )
    made = _widget()(page=page(payload), height=height)
    made.still = dict(still or {})
    return made


def script(*parts: str) -> str:
    """What runs in the notebook itself, outside of the frame that holds the page."""
    return "\n".join((files("interp.explorer") / f"{name}.js").read_text(encoding="utf-8") for name in parts)


@cache
def _widget() -> Any:
    import anywidget
    import traitlets

    class LiveExplorer(anywidget.AnyWidget):
        """The page in a frame, with its selection."""

        _esm = script("frame", "live")
        page = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int(HEIGHT).tag(sync=True)
        selection = traitlets.Dict().tag(sync=True)
        still = traitlets.Dict()

        def _repr_mimebundle_(self, **kwargs: Any) -> Any:
            """With the page and a picture, for where the notebook is only read and nothing answers."""
            found = super()._repr_mimebundle_(**kwargs)
            if found is None:
                return None
            data, metadata = found
            return self.still | data, metadata

    return LiveExplorer
