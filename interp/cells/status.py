"""How far a directory is: what is done, what is missing, what failed and why, and how long the rest will take.

Read from the files alone, while the work goes on or after it. The time is that of the chunks that are there, by when
their files were written: the middle one of the times between two of them, a cell, for the cells that are left.
Limits: a directory that was copied without its files' times says nothing of time; chunks of an engine come in as they
are finished, several at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from interp.cells.journal import FAILED, PLAN, Journal, plan_of
from interp.cells.shards import FRAME, MARK, marked
from interp.hooks.html import Told
from interp.hooks.sealed import opened, parsed, understood
from interp.kernels.errors import InterpError


@dataclass(frozen=True)
class Stretch:
    """One list of cells: how many of its own are done, and which are not."""

    place: str
    done: int
    of: int
    missing: tuple[str, ...]
    """Cells that are not there, as "12-17", or the names of steps or reports."""
    failed: tuple[str, ...]
    """The same of what could not be computed, with what was said."""
    seconds: float | None
    """Expected for what is missing."""


@dataclass(frozen=True, eq=False)
class Status(Told):
    """How far a directory is."""

    folder: Path
    """The directory that was read."""
    what: str
    """"a run", or which shard of which call."""
    parts: tuple[Stretch, ...]
    """One entry for each list of cells."""
    finished: bool
    """Whether no cell is missing."""

    @property
    def done(self) -> int:
        """Cells that are there."""
        return sum(one.done for one in self.parts)

    @property
    def of(self) -> int:
        """Cells that there will be, as far as is known."""
        return sum(one.of for one in self.parts)

    @property
    def failed(self) -> tuple[str, ...]:
        """What could not be computed."""
        return tuple(_at(one.place, text) for one in self.parts for text in one.failed)

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not there."""
        return tuple(_at(one.place, text) for one in self.parts for text in one.missing)

    @property
    def seconds(self) -> float | None:
        """Expected until it is finished; None where nothing tells."""
        known = [one.seconds for one in self.parts if one.missing]
        return None if any(one is None for one in known) else sum((one for one in known if one is not None), 0.0)

    def to_frame(self) -> Any:
        """One row a list of cells."""
        import pandas

        rows = [
            {"place": one.place or ".", "done": one.done, "of": one.of, "missing": len(one.missing),
             "failed": len(one.failed), "seconds": one.seconds} for one in self.parts
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "what": self.what, "finished": self.finished, "done": self.done,
                "of": self.of, "missing": list(self.missing), "failed": list(self.failed),
                "seconds": self.seconds}  # fmt: skip

    def __repr__(self) -> str:
        left = self.seconds
        time = "" if self.finished or not left else f", about {_long(left)} left"
        state = "finished" if self.finished else "not finished"
        lines = [f"{self.folder}: {self.what}, {state}, {self.done} of {self.of} cells done{time}."]
        lines += [f"missing: {_few(self.missing)}"] * bool(self.missing)
        lines += [f"FAILED: {line}" for line in self.failed]
        return "\n".join(lines)


def journals(folder: str | Path) -> Status:
    """Of a sweep, or a shard of one, with all lists of cells in it."""
    folder = Path(folder)
    shard = marked(folder) if (folder / MARK).exists() else None
    plans = sorted(path for path in folder.rglob(PLAN) if path.parent.name != "steps")
    if not plans and shard is None:
        raise InterpError(f"{folder} holds no saved work: it has no {PLAN} and no {MARK}.")
    parts = tuple(_part(folder, plan.parent, shard) for plan in plans)
    what = "a run" if shard is None else f"shard {shard['index']}/{shard['of']} of {shard['call']}"
    there = not any(one.missing for one in parts)
    ended = there if shard is None else there and (folder / FRAME[1]).exists()
    return Status(folder, what, parts, ended)


def _part(root: Path, folder: Path, shard: dict[str, Any] | None) -> Stretch:
    plan, journal = plan_of(folder / PLAN), Journal(folder)
    mine = [
        pair
        for n, pair in enumerate(plan["chunks"])
        if shard is None or (n + plan["turn"]) % shard["of"] == shard["index"]
    ]
    left = [pair for pair in mine if not journal.chunk(*pair).exists()]
    there = [pair for pair in mine if pair not in left]
    of, missing = (sum(high - low for low, high in pairs) for pairs in (mine, left))
    failed = tuple(_why(journal.chunk(*pair).with_suffix(FAILED), *pair) for pair in left)
    place = folder.relative_to(root).as_posix()
    return Stretch(
        "" if place == "." else place, of - missing, of, tuple(f"{low}-{high - 1}" for low, high in left),
        tuple(why for why in failed if why), _expected(journal, there, missing),
    )  # fmt: skip


def _why(path: Path, low: int, high: int) -> str:
    """What was written down of a chunk that failed; nothing where it did not."""
    if not path.exists():
        return ""
    with understood(path):
        return f"cells {low}-{high - 1}: {opened(path, parsed(path))[0]['why']}"


def _expected(journal: Journal, there: Sequence[tuple[int, int]], left: int) -> float | None:
    """Seconds for the cells that are left."""
    if not left:
        return 0.0
    ends = sorted((journal.chunk(*pair).stat().st_mtime, pair[1] - pair[0]) for pair in there)
    ends = [((journal.folder / PLAN).stat().st_mtime, 0), *ends]
    each = [(b - a) / cells for (a, _), (b, cells) in pairwise(ends)]
    return median(each) * left if each else None


def _at(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _long(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
