"""Cells of a sweep from two recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from interp.hooks.drive.questions import Cell, differs
from interp.hooks.sites import Site


def cells_of(
    sites: Sequence[Site],
    values: Callable[[Site], Tensor],
    base: Callable[[Site], Tensor],
    where: Callable[[Site], Sequence[Tensor]],
) -> list[Cell]:
    """A cell per site and position set, its positions cut down to those where the source differs from the base."""
    found: list[Cell] = []
    for site in sites:
        new, old = values(site.whole), base(site.whole)
        moved = differs(old, new, site.heads, pattern=site.component == "pattern")
        found.extend(Cell(site, new, chosen & moved) for chosen in where(site))
    return found
