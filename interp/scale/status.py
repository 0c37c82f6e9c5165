"""How far a directory is that a call writes to: done, missing and failed cells, and the expected time."""

from __future__ import annotations

from pathlib import Path

from interp.cells.status import Status, journals
from interp.scale.corpora.merging import progress
from interp.scale.corpora.state import PLAN


def status(directory: str | Path) -> Status:
    """Of a run, a shard, a corpus, a report or a grid of reports, under way or over; read from its files alone."""
    return progress(directory) if (Path(directory) / PLAN).exists() else journals(directory)
