"""One browser for the tests of a file, and pages opened in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from browsing import headless, opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with headless() as running:
        yield running


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Callable[..., AbstractContextManager[Any]]:
    from interp.explorer.page import page  # types are checked in what is imported after the session has begun

    return lambda payload, **how: opened(chromium, page(payload), tmp_path, **how)
