"""What became of the cells of a grid of reports, written down as it goes in `grid.json`: for whoever asks how far it
is, and for the merge of its shards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.cells.journal import kept
from interp.cells.merging import ShardsDiffer
from interp.hooks.sealed import opened, parsed, sealed, understood
from interp.kernels.errors import InterpError
from interp.saving import renamed

FILE, FORMAT = "grid.json", 1
Named = dict[str, str]
"""Cells by name, and what was said of each."""


@dataclass
class Outcomes:
    """The cells of a grid in its order, and those that were left out or failed."""

    folder: Path
    grid: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    left_out: Named = field(default_factory=dict)
    failed: Named = field(default_factory=dict)

    def write(self) -> None:
        """As it is now."""
        made = {"format": FORMAT, "grid": self.grid, "cells": list(self.cells), "left_out": self.left_out,
                "failed": self.failed}  # fmt: skip
        with kept(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            renamed(self.folder / FILE, sealed(made))

    @classmethod
    def read(cls, folder: str | Path) -> Outcomes:
        """What `write` wrote."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise InterpError(f"{folder} holds no grid of reports that was begun: it has no {FILE}.")
        about, _ = opened(path, parsed(path))
        with understood(path):
            left, failed = dict(about["left_out"]), dict(about["failed"])
            return cls(Path(folder), dict(about["grid"]), [dict(one) for one in about["cells"]], left, failed)

    def known(self, name: str) -> bool:
        """Whether a cell is over: reported, left out or failed."""
        return self.done(name) or name in self.left_out or name in self.failed

    def done(self, name: str) -> bool:
        """Whether there is a report of it, whole."""
        return (self.folder / name / "run.json").is_file()

    def lines(self, which: Named) -> list[str]:
        """In the order of the grid."""
        return [f"{cell['name']}: {which[cell['name']]}" for cell in self.cells if cell["name"] in which]


def together(folders: Sequence[Path], to: Path) -> Outcomes:
    """Every cell's report copied from the shard that has it; refused where shards are of other grids or models, or a
    cell is not over."""
    shards = [Outcomes.read(folder) for folder in folders]
    first = shards[0]
    for shard in shards[1:]:
        if (shard.grid, shard.cells) != (first.grid, first.cells):
            raise ShardsDiffer(f"{first.folder} and {shard.folder} are of other grids: {first.grid} and {shard.grid}.")
    made, hashes = Outcomes(to, first.grid, first.cells), dict[str, tuple[str, Path]]()
    for n, cell in enumerate(first.cells):
        name = str(cell["name"])
        mine = next((shard for shard in shards if shard.known(name)), None)
        if mine is None:
            raise ShardsDiffer(
                f"{shards[n % len(shards)].folder} has no report {name} yet: make the same call again to continue it."
            )
        if mine.done(name):
            _same_model(str(cell["model"]), mine.folder / name, hashes)
            shutil.copytree(mine.folder / name, to / name)
        made.left_out |= {name: mine.left_out[name]} if name in mine.left_out else {}
        made.failed |= {name: mine.failed[name]} if name in mine.failed else {}
    return made


def _same_model(model: str, report: Path, hashes: dict[str, tuple[str, Path]]) -> None:
    plan = report / "steps" / "plan.json"
    about, _ = opened(plan, parsed(plan))
    found = f"{about.get('model_hash')} with {about.get('versions')}"
    known, there = hashes.setdefault(model, (found, report))
    if known != found:
        raise ShardsDiffer(f"{model} was another model in {there} ({known}) than in {report} ({found}).")
