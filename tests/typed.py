"""The type checker that pytest puts on the package: beartype, for everything but functions inside functions.

Those would be compiled anew each time the outer one runs, a tenth of the time of a test; no room has its border there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(thing: Any) -> Any:
    """The function or class with its annotations checked at run time."""
    inside = isinstance(thing, Callable) and "<locals>" in getattr(thing, "__qualname__", "")  # type: ignore[arg-type]
    return thing if inside else beartype(thing)
