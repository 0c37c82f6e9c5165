"""Run the self-checks of the hook layer over a matrix of tiny random models, one line a family.

Each family is built from its real class and a tiny config, and checked under sdpa and eager, alone and in batches of
three padded on the left and on the right, in float32 and bfloat16. A check passes when it passes in every cell; what
a class does not support is n/a, with the reason, and never counts as a pass. Cost: seconds a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import torch

from interp.hooks.examples.example import example
from interp.kernels.errors import InterpError
from interp.model import attach
from interp.zoo.families import FAMILIES, tiny

NAMES = ("off", "fired", "sum", "zero", "pattern", "residual")
Padding = Literal["left", "right"] | None


@dataclass(frozen=True)
class Cell:
    """One way to run a family."""

    attention: Literal["sdpa", "eager"]
    dtype: torch.dtype
    batch: int
    padding: Padding

    def __str__(self) -> str:
        side = f", padded {self.padding}" if self.padding else ""
        return f"{self.attention}, {str(self.dtype).removeprefix('torch.')}, batch {self.batch}{side}"


@dataclass
class FamilyRow:
    """What a family's checks said in all of its cells."""

    family: str
    cells: int = 0
    verdicts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check that applies passed in every cell, and at least one cell ran."""
        return self.cells > 0 and "fail" not in self.verdicts.values()

    def to_dict(self) -> dict[str, object]:
        """The row as plain data."""
        return {
            "family": self.family,
            "passed": self.passed,
            "cells": self.cells,
            "checks": self.verdicts,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        marks = "  ".join(f"{name} {self.verdicts.get(name, 'n/a'):<4}" for name in NAMES)
        head = f"{self.family:<22} {'pass' if self.passed else 'FAIL'}  {self.cells:>2} cells  {marks}"
        return "\n".join([head.rstrip(), *(f"{'':<24}{note}" for note in self.notes)])


ATTENTIONS: tuple[Literal["sdpa", "eager"], ...] = ("sdpa", "eager")
BATCHES: tuple[tuple[int, Padding], ...] = ((1, None), (3, "left"), (3, "right"))
CELLS = tuple(
    Cell(attention, dtype, batch, padding)
    for attention, dtype, (batch, padding) in product(ATTENTIONS, (torch.float32, torch.bfloat16), BATCHES)
)


def examine(family: str, cells: Iterable[Cell] = CELLS) -> FamilyRow:
    """The checks of one family."""
    row = FamilyRow(family)
    for cell in cells:
        reason = _not_applicable(family, cell)
        if reason is not None:
            _note(row, reason)
        else:
            _run(row, cell)
    return row


def _not_applicable(family: str, cell: Cell) -> str | None:
    """What the family says it has not got."""
    wanted = [cell.attention] + (["padding"] if cell.padding else [])
    for what, reason in FAMILIES[family].na.items():
        if what in wanted:
            return f"n/a {what}: {reason}"
    return None


def _run(row: FamilyRow, cell: Cell) -> None:
    try:
        module = tiny(row.family, attn=cell.attention, dtype=cell.dtype)
        report = attach(module, example=example(module, batch=cell.batch, padding=cell.padding)).check()
    except InterpError as wrong:
        row.verdicts["off"] = "fail"
        _note(row, f"{cell}: {wrong}")
        return
    row.cells += 1
    for line in report.lines:
        name = line.name.rpartition(".")[2]
        old = row.verdicts.get(name)
        row.verdicts[name] = _worse(old, line.verdict)
        if line.verdict == "fail":
            _note(row, f"{line.name} fails under {cell}: {line.note}")
        elif line.verdict != "pass":
            _note(row, f"{line.verdict} {line.name}: {line.note}")


def _worse(old: str | None, new: str) -> str:
    """A failure outweighs all; a pass in one tower outweighs n/a in another, or a note."""
    order = {"n/a": 0, "note": 1, "pass": 2, "fail": 3}
    return new if old is None or order[new] > order[old] else old


def _note(row: FamilyRow, note: str) -> None:
    if note not in row.notes:
        row.notes.append(note)


def doctor(families: Sequence[str] = (), cells: Iterable[Cell] = CELLS) -> Iterator[FamilyRow]:
    """One row per family, as each is done."""
    chosen = list(cells)
    for family in families or FAMILIES:
        yield examine(family, chosen)
