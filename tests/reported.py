"""What tests of reports share: small models, a task of one row, what a directory holds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import interp
from interp.planted.probes import probe_task
from interp.tasks.task import Task

SMALL: dict[str, Any] = {"draws": 2, "random": 3, "examples": 1}
GATE = "zoo:planted-backup"


@cache
def model(name: str) -> interp.Model:
    return interp.load(f"zoo:{name}")


@cache
def gate() -> Task:
    return probe_task("planted-backup", model=model("planted-backup"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the record with the times in it."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / "run.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
