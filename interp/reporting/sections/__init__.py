"""Sections of a report, one file each: its file ends with `SECTION`, which says what it does, costs and shows. A file
put here is a section of every report."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from interp.reporting.steps.section import Section


@cache
def sections() -> tuple[Section, ...]:
    """All of them, in the order in which they are done."""
    files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return tuple(sorted((file.SECTION for file in files), key=lambda one: one.place))


__all__ = ["sections"]
