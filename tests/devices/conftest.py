"""Shapes and types are checked in the tests of each room; here, where every call runs on slow devices, they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A function inside a function would be given its checks anew each time that it is made; those are left out too."""
    checked = jaxtyping.jaxtyped

    def lasting(**how: Any) -> Callable[[Any], Any]:
        return lambda made: made if "<locals>" in made.__qualname__ else checked(**how)(made)

    monkeypatch.setattr(jaxtyping, "jaxtyped", lasting)
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
