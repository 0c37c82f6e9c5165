"""How far a directory is that a call writes to: done, missing and failed cells, and the expected time."""

from __future__ import annotations

from pathlib import Path

from interp.cells.status import Status, journals


def status(directory: str | Path) -> Status:
    """Of a run, a shard, a report or a grid of reports, under way or over; read from its files alone."""
    return journals(directory)
