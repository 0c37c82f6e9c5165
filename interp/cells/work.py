"""The cells of one question, done chunk by chunk: in this process or by an engine, written down, whole or a shard.

A `Work` knows how many cells it has, how they go into chunks, and what a chunk's numbers are. `chunks` walks over them:
what is written down already is read back, the rest is computed and, with `out=`, written down as it comes. A shard does
chunk n where n % of is its index (`interp/cells/shards.py`). An engine does chunks elsewhere and hands them back in any
order; only this process writes. A chunk's numbers depend on its bounds and not on who computes it or on what was
computed before, so all of these give the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.cells.failures import CellsFailed
from interp.cells.journal import Journal, Values
from interp.cells.shards import Shard
from interp.kernels.errors import InterpError

Floors = dict[str, float]
"""By metric, how far what changes nothing is from 0."""
Finished = tuple[int, int, Values, Floors]
"""A chunk: its first cell, the one after its last, and its numbers."""
Bounds = list[tuple[int, int]]
FAILURES = (InterpError, RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
"""What a chunk may end with that is of the chunk: a model's own code raises anything."""
ENGINES: dict[str, str] = {"ray": "interp.scale.workers.engine:Ray"}
"""Engines that have a name, and their home, "module:callable": what it gives has a `run`."""


@dataclass(frozen=True)
class Builder:
    """How another process makes the same work: `build` is "module:callable", called with the model and `arguments`,
    which can be pickled."""

    build: str
    arguments: Mapping[str, Any]

    def make(self, model: Any) -> Work:
        """The work on a model that is the same as the first one."""
        module, _, name = self.build.partition(":")
        made: Work = getattr(import_module(module), name)(model, **self.arguments)
        return made


@runtime_checkable
class Work(Protocol):
    """The cells of one question, asked for by number."""

    @property
    def model(self) -> Any:
        """The model it asks, which another process is given apart from the recipe."""

    @property
    def task(self) -> Mapping[str, Any]:
        """Which question this is, as JSON has it: the model's identity, the data, versions."""

    @property
    def count(self) -> int:
        """How many cells there are."""

    @property
    def names(self) -> Mapping[str, int]:
        """The metrics, and how many examples a cell has of each."""

    @property
    def product(self) -> str:
        """The choice of matrix products, which the plan fixes."""

    @property
    def recipe(self) -> Builder | None:
        """How another process makes it; None where it cannot."""

    def bounds(self) -> Bounds:
        """The chunks: the same on every machine, since shards have to agree on them."""

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """The numbers of one chunk: values by metric [cell, example], and noise floors."""


@runtime_checkable
class Engine(Protocol):
    """Who does chunks elsewhere."""

    def run(self, work: Work, bounds: Sequence[tuple[int, int]]) -> Iterator[Finished]:
        """Chunks that are finished, in any order; those that cannot be are left out and raised about at the end."""


@dataclass(frozen=True, eq=False)
class Begun:
    """Work whose chunks are fixed: all of them, and those that are this process's."""

    work: Work
    journal: Journal | None
    bounds: Bounds
    mine: Bounds

    @property
    def todo(self) -> Bounds:
        """Those of mine that are not written down."""
        return [pair for pair in self.mine if self.journal is None or not self.journal.chunk(*pair).exists()]

    def run(self, engine: Any = None) -> Iterator[Finished]:
        """Every chunk of mine, the written ones first."""
        left = self.todo
        for low, high in self.mine:
            if (low, high) not in left and self.journal is not None:
                done = self.journal.read(low, high, self.work.names)
                if done is None:
                    raise InterpError(f"{self.journal.chunk(low, high)} was removed while it was read.")
                yield low, high, *done
        if left:
            yield from self._computed(engine_of(engine, self.journal), left)

    def _computed(self, engine: Engine, left: Bounds) -> Iterator[Finished]:
        """Chunks as the engine has them, written down; it ends when they are not asked for any more."""
        done = engine.run(self.work, left)
        try:
            for low, high, values, floors in done:
                if self.journal is not None:
                    self.journal.write(low, high, values, floors)
                yield low, high, values, floors
        except CellsFailed as why:
            if self.journal is not None:
                for one in why.failed:
                    self.journal.failed(*one.chunk, str(one))
            raise
        finally:
            if isinstance(done, Generator):
                done.close()


def begin(work: Work, *, out: str | Path | None = None, shard: Shard | None = None, turn: int = 0) -> Begun:
    """Fix the chunks, or find them fixed. `turn` is the shard that the first chunk belongs to: works of one chunk each
    are dealt round by it."""
    journal = None if out is None else Journal(out)
    plan = None if journal is None else journal.known(work.task)
    bounds = work.bounds() if plan is None else plan["chunks"]
    if journal is not None and plan is not None:
        journal.must_cover(bounds, work.count)
    if journal is not None and plan is None:
        journal.begin(work.task, bounds, work.product, turn)
    mine = bounds if shard is None else [pair for n, pair in enumerate(bounds) if shard.has(n + turn)]
    return Begun(work, journal, bounds, mine)


def chunks(
    work: Work, *, out: str | Path | None = None, shard: Shard | None = None, engine: Any = None
) -> Iterator[Finished]:
    """Every chunk of the work, or of a shard of it: first, cell after the last, values by metric [cell, example], noise
    floors."""
    yield from begin(work, out=out, shard=shard).run(engine)


def gathered(work: Work, parts: Iterator[Finished]) -> tuple[Values, Floors]:
    """The chunks put together: values by metric [cell, example], 0 where none came, and the largest noise floors."""
    values = {name: torch.zeros(work.count, n, dtype=torch.float64) for name, n in work.names.items()}
    floors = dict.fromkeys(values, 0.0)
    for low, high, found, floor in parts:
        for name, part in found.items():
            values[name][low:high] = part
            floors[name] = max(floors[name], floor.get(name, 0.0))
    return values, floors


def read_back(folder: str | Path) -> tuple[Values, Floors]:
    """Everything that a journal holds, all of whose chunks are there: what `gathered` gives of the same work."""
    journal = Journal(folder)
    found = [(low, high, *_there(journal, low, high)) for low, high in journal.plan()["chunks"]]
    values = {name: torch.cat([part[2][name] for part in found]) for name in (found[0][2] if found else {})}
    return values, {name: max(part[3].get(name, 0.0) for part in found) for name in values}


def _there(journal: Journal, low: int, high: int) -> tuple[dict[str, Tensor], Floors]:
    done = journal.read(low, high)
    if done is None:
        raise InterpError(f"{journal.folder} has no chunk of cells {low} to {high - 1} yet: it is not finished.")
    return done


@dataclass(frozen=True)
class Here:
    """The engine that is this process; what failed is written down before it is raised."""

    journal: Journal | None = None

    def run(self, work: Work, bounds: Sequence[tuple[int, int]]) -> Iterator[Finished]:
        """One after the other."""
        for low, high in bounds:
            try:
                done = work.compute(low, high)
            except FAILURES as why:
                if self.journal is not None:
                    self.journal.failed(low, high, f"{type(why).__name__}: {why}")
                raise
            yield low, high, *done


def engine_of(engine: Any, journal: Journal | None = None) -> Engine:
    """Who does the chunks: this process where nobody is named."""
    if engine is None:
        return Here(journal)
    if isinstance(engine, str) and engine in ENGINES:
        module, _, name = ENGINES[engine].partition(":")
        engine = getattr(import_module(module), name)()
    if not isinstance(engine, Engine):
        there = ", ".join(map(repr, ENGINES)) or "none by name"
        raise InterpError(f"engine= is something with run(work, bounds), or a name ({there}); got {engine!r}.")
    try:
        signature(engine.run).bind(None, ())
    except TypeError as why:
        raise InterpError(
            f"engine= is something with run(work, bounds), and run of {engine!r} takes something else ({why}). A served"
            " engine stands in the place of the model, in the calls that take one (docs/served.md)."
        ) from why
    return engine
