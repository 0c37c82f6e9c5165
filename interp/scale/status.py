"""How far a directory is that a call writes to: done, missing and failed cells, and the expected time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median

from interp.cells.shards import MARK, marked
from interp.cells.status import Status, Stretch, journals
from interp.reporting.outcomes import FILE, Outcomes
from interp.scale.corpora.merging import progress
from interp.scale.corpora.state import PLAN

REPORT = "steps/plan.json"


def status(directory: str | Path) -> Status:
    """Of a run, a shard, a corpus, a report or a grid of reports, under way or over; read from its files alone.

    A grid's cells are its reports. Of a report the steps that are done are counted; which others follow depends on what
    they find, so it has no expected time.
    """
    folder = Path(directory)
    if (folder / FILE).exists():
        return _grid(folder)
    if (folder / PLAN).exists():
        return progress(folder)
    return _report(folder) if (folder / REPORT).exists() else journals(folder)


def _report(folder: Path) -> Status:
    steps = [file.stem for file in (folder / "steps").glob("*.json") if file.stem != "plan"]
    over = (folder / "run.json").is_file()
    missing = () if over else ("the steps that follow",)
    return Status(folder, "a report", (Stretch("", len(steps), len(steps), missing, (), None),), over)


def _grid(folder: Path) -> Status:
    found, shard = Outcomes.read(folder), marked(folder) if (folder / MARK).exists() else None
    names = [
        str(cell["name"]) for n, cell in enumerate(found.cells) if shard is None or n % shard["of"] == shard["index"]
    ]
    missing = tuple(name for name in names if not found.known(name))
    ends = sorted((folder / name / "run.json").stat().st_mtime for name in names if found.done(name))
    each = [b - a for a, b in pairwise([(folder / MARK).stat().st_mtime, *ends] if shard else ends)]
    left = 0.0 if not missing else median(each) * len(missing) if each else None
    what = "a grid of reports" if shard is None else f"shard {shard['index']}/{shard['of']} of {shard['call']}"
    part = Stretch("", len(names) - len(missing), len(names), missing, tuple(found.lines(found.failed)), left)
    return Status(folder, what, (part,), not missing and (shard is not None or (folder / "stability.csv").exists()))
