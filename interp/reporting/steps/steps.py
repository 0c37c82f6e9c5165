"""A report's work as named steps, each saved when it is done, so that a killed report continues where it stopped.

`steps/plan.json` says which report this is and comes first; `steps/NAME.json` is a step's answer, written under another
name and renamed. Answers are read back as they were written, so a report that was resumed ends with the same bytes.
That a method does not fit a model is an answer. Want of memory is one for now: going on tries it again, and where it
comes out otherwise, what came after it as well. A self-check that failed is none: it stops the report.
A step that takes long says so every now and then, with how far it is where it knows.
Limits: the same bytes need the same machine, versions and number of threads.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.hooks.errors import BudgetError, CheckFailed
from interp.hooks.sealed import opened, parsed, sealed
from interp.kernels.errors import InterpError
from interp.saving import renamed

FORMAT = 1
EVERY, SOON, GROWING = 10.0, 2.0, 1.5
"""Seconds until a first line about a step that is under way, in a log and at a terminal, and how much longer the next
one takes each time."""
Answer = dict[str, Any]
Say = Callable[[str], None]


class Steps:
    """The directory of one report."""

    def __init__(
        self, folder: str | Path, plan: Mapping[str, Any], *, resume: bool, overwrite: bool, say: Say | None = None,
        files: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.folder, self.inside = Path(folder), Path(folder) / "steps"
        self.say = say or (lambda line: None)
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        """The same in processor time, which a busy machine does not stretch."""
        mine = json.loads(json.dumps({"format": FORMAT, **plan}))
        self.notes: list[str] = []
        self.reached: list[str] = []
        self.planned: Mapping[str, float | int] = {}
        """Passes by step, where they are known."""
        self.pace = 0.0
        """Seconds of a pass."""
        self.far = ""
        """How far the step under way says it is."""
        cleared = overwrite and _clear(self.folder, files)
        _writable(self.folder)
        self._begin(mine, resume=resume, cleared=cleared)

    def _begin(self, mine: Answer, *, resume: bool, cleared: bool) -> None:
        file = self.inside / "plan.json"
        if not file.exists():
            if resume and any(self.folder.iterdir()):
                raise InterpError(
                    f"{self.folder} holds no report that was begun, so it cannot be resumed: leave resume out."
                )
            if any(self.folder.iterdir()) and not cleared:
                raise InterpError(f"{self.folder} is not empty and holds no report: give another directory.")
            self.inside.mkdir()
            renamed(file, _written(mine))
            return
        known = _read(file)
        if not resume:
            raise InterpError(
                f"{self.folder} already holds a report: continue it (resume=True, --resume), replace it"
                " (overwrite=True, --overwrite) or give another directory."
            )
        named = sorted({*known, *mine}, key=lambda name: (name.endswith("_hash"), name))
        other = [name for name in named if known.get(name) != mine.get(name)]
        if other:
            raise InterpError(
                f"{self.folder} holds another report: its {other[0]} is {known.get(other[0])!r}, this one's"
                f" {mine.get(other[0])!r}. Give another directory."
            )
        _swept(self.folder)

    def do(self, name: str, work: Callable[[], Mapping[str, Any]]) -> Answer:
        """A step's answer: the one that is there, or that of doing it now."""
        file = self.inside / f"{name}.json"
        self.reached.append(name)
        known = _read(file) if file.exists() else None
        if known is not None and AGAIN not in known:
            self.say(f"{name}: done before")
        else:
            start, used = time.perf_counter(), time.process_time()
            with self._heard(name):
                made = _noted(work)
            if known is not None and AGAIN not in made:
                self._forget_what_came_after()
            renamed(file, _written(made))
            self.seconds[name] = round(time.perf_counter() - start, 3)
            self.processor[name] = round(time.process_time() - used, 3)
            self.say(f"{name}: {self.seconds[name]:.1f} s{self._done()}")
        answer = _read(file)
        self.notes += [note for note in answer.pop("notes", ()) if note not in self.notes]
        return answer

    def tell(self, far: str) -> None:
        """Say how far the step under way is, for the next line about it."""
        self.far = far

    def _done(self) -> str:
        """The passes that were planned up to here, of all."""
        total = sum(self.planned.values())
        done = sum(passes for name, passes in self.planned.items() if name in self.reached)
        left = (total - done) * self.pace
        more = f", about {left:,.0f} s left" if left >= SOON else ""
        return f" ({done:,.0f} of about {total:,.0f} passes{more})" if total else ""

    @contextmanager
    def _heard(self, name: str) -> Iterator[None]:
        """While inside, a line every now and then."""
        self.far, over, start = "", threading.Event(), time.perf_counter()
        expected = self.planned.get(name, 0.0) * self.pace

        def speak() -> None:
            wait = min(EVERY, SOON) if sys.stderr.isatty() else EVERY
            while not over.wait(wait):
                wait *= GROWING
                of = f" of about {expected:.0f} s" if expected else ""
                self.say(f"{name}: {time.perf_counter() - start:.0f} s{of}{self.far and ', ' + self.far} ...")

        voice = threading.Thread(target=speak, name=f"progress of {name}", daemon=True)
        voice.start()
        try:
            yield
        finally:
            over.set()
            voice.join()

    def _forget_what_came_after(self) -> None:
        """Later steps were answered without what this one has now."""
        for file in self.inside.glob("*.json"):
            if file.stem not in ("plan", *self.reached):
                file.unlink()

    def attempt(self, name: str, work: Callable[[], Mapping[str, Any]]) -> Answer:
        """The same where a refusal is an answer, {"refused": why}: a method that does not fit a model says so."""

        def tried() -> Mapping[str, Any]:
            try:
                return work()
            except CheckFailed as why:
                raise CheckFailed(f"{name}: {why}") from why
            except BudgetError as why:
                return {"refused": f"{name}: {why} It is tried again with resume=True, --resume.", AGAIN: True}
            except InterpError as why:
                return {"refused": f"{name}: {why}"}

        return self.do(name, tried)

    def write(self, name: str, data: bytes | str) -> Path:
        """One of the report's files, whole or not at all."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        renamed(file, data.encode() if isinstance(data, str) else data)
        return file


AGAIN = "again"
"""Marks an answer that holds for the moment only."""
OWN = ("steps", "results", "figures")
FILES = (
    "report.html", "heads.csv", "heads.parquet", "run.json", "heads.tex", "references.bib", "README.md",
)  # fmt: skip


def _clear(folder: Path, more: Sequence[str]) -> bool:
    """Take away what a report wrote, and nothing else; whether there was one."""
    if not (folder / "steps" / "plan.json").exists():
        return False
    for name in OWN:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*FILES, *more):
        (folder / name).unlink(missing_ok=True)
    return True


def _swept(folder: Path) -> None:
    """Take away what a kill left half written; see `interp.saving.renamed`."""
    for file in [*folder.rglob("*.part*")]:
        if re.fullmatch(r"\.part\d*", file.suffix):
            file.unlink(missing_ok=True)


def _noted(work: Callable[[], Mapping[str, Any]]) -> Answer:
    """A step's answer, with what the methods in it warned about as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer = dict(work())
    notes = []
    for one in caught:
        if one.category is UserWarning:
            notes.append(" ".join(str(one.message).split()))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return {**answer, "notes": list(dict.fromkeys(notes))} if notes else answer


def _writable(folder: Path) -> None:
    """Find out before the work that there will be somewhere to put it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.part"
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as why:
        raise InterpError(f"{folder} cannot be written to ({why.strerror}): give another directory.") from why


def _read(file: Path) -> Answer:
    return opened(file, parsed(file))[0]


def _written(answer: Mapping[str, Any]) -> bytes:
    return sealed(answer)
