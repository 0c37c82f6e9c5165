"""Many patches of the same prompts, each answered exactly, by replay where the model can be driven and else in full
passes.

A cell is a question: these values at this site and these positions. Answers come back per cell and prompt as the
logits that are read. Cells that change nothing, by comparison with the base run, are not run; their answer is the
base's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy import Anatomy
from interp.hooks.edits import Set
from interp.hooks.errors import CheckFailed, InputsError
from interp.hooks.family import Family
from interp.hooks.inputs import Inputs
from interp.hooks.output import logits_of
from interp.hooks.recording import CannotDrive
from interp.hooks.replay import Change, Replay, Row
from interp.hooks.session import Session
from interp.hooks.sites import Site
from interp.hooks.tape import tower_inputs

ROWS = 512
"""Rows that are under way together."""


@dataclass(frozen=True, eq=False)
class Cell:
    """New values [prompt, position, ...] at a site, where `where` [prompt, position] says so."""

    site: Site
    values: Tensor
    where: Tensor


@dataclass(frozen=True, eq=False)
class Reads:
    """What of the logits is needed: columns of the inputs [prompt, read] and of the vocabulary."""

    positions: Tensor
    columns: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Answer:
    """One cell's logits [prompt, read, column] beside those of unchanged rows computed with them; `changed`
    [prompt]."""

    number: int
    logits: Tensor
    unchanged: Tensor
    changed: Tensor


class Sweep:
    """The engine of exact patching on one base batch."""

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        base: Inputs,
        kwargs: Mapping[str, Any],
        *,
        family: Family | None = None,
    ) -> None:
        self.module, self.anatomy, self.base, self.kwargs, self.family = module, anatomy, base, dict(kwargs), family
        self.replays: dict[str, Replay | str] = {}
        self.passes = 0

    def engine(self, tower: str | None) -> Replay | str:
        """The tower's replay, or why it has none."""
        name = self.anatomy.tower(tower, text=str(tower)).name
        if name not in self.replays:
            self.replays[name] = self._make(name)
        return self.replays[name]

    def _make(self, name: str) -> Replay | str:
        tower = self.anatomy.towers[name]
        try:
            replay = Replay(
                self.module,
                self.anatomy,
                tower,
                self.kwargs,
                tower_inputs(self.base, Site(name, None, "embed")).valid,
            )
            self.passes += 1
        except CannotDrive as reason:
            warnings.warn(
                f"{type(self.module).__name__}: {reason}; the {name} tower is patched in full forward passes.",
                stacklevel=2,
            )
            return str(reason)
        return replay

    def run(self, cells: Sequence[Cell], reads: Reads) -> Iterator[Answer]:
        """Every cell's answer, in order."""
        for tower in dict.fromkeys(cell.site.tower for cell in cells):
            mine = [n for n, cell in enumerate(cells) if cell.site.tower == tower]
            engine = self.engine(tower)
            if isinstance(engine, Replay):
                yield from self._replayed(engine, cells, mine, reads)
            else:
                yield from self._in_full(cells, mine, reads)

    def _replayed(self, replay: Replay, cells: Sequence[Cell], mine: Sequence[int], reads: Reads) -> Iterator[Answer]:
        prompts = range(replay.base.prompts)
        waiting: list[tuple[int, list[Row | None]]] = []
        for number in mine:
            change = _change(cells[number])
            waiting.append((number, [replay.row(number, b, [change]) for b in prompts]))
            if sum(row is not None for _, rows in waiting for row in rows) >= ROWS:
                yield from self._wave(replay, waiting, reads)
                waiting = []
        if waiting:
            yield from self._wave(replay, waiting, reads)

    def _wave(self, replay: Replay, waiting: Sequence[tuple[int, list[Row | None]]], reads: Reads) -> Iterator[Answer]:
        rows = [row for _, some in waiting for row in some if row is not None]
        start = min((row.start for row in rows), default=0)
        made = replay.run([*rows, *replay.unchanged(start)], reads.positions, reads.columns)
        unchanged, at = made[len(rows) :], 0
        for number, some in waiting:
            logits = unchanged.clone()
            for b, row in enumerate(some):
                if row is not None:
                    logits[b], at = made[at], at + 1
            yield Answer(number, logits, unchanged, torch.tensor([row is not None for row in some]))

    def _in_full(self, cells: Sequence[Cell], mine: Sequence[int], reads: Reads) -> Iterator[Answer]:
        unchanged = self.plain(reads)
        for number in mine:
            cell = cells[number]
            changed = cell.where.any(1)
            yield Answer(number, self.full(cell, reads) if bool(changed.any()) else unchanged, unchanged, changed)

    def plain(self, reads: Reads) -> Tensor:
        """The base's own logits, from a plain forward pass."""
        return self._forward([], reads)

    def full(self, cell: Cell, reads: Reads) -> Tensor:
        """One cell in a full forward pass with an edit: the naive loop's step, and the oracle of the replay."""
        if not bool(cell.where.any()):
            return self.plain(reads)
        heads = list(cell.site.heads) if cell.site.heads is not None else None
        if cell.where.shape != cell.values.shape[:2]:
            raise InputsError(
                f"{cell.site}: values for {list(cell.values.shape[:2])} positions, but positions"
                f" {list(cell.where.shape)}."
            )
        values = cell.values if heads is None else cell.values[:, :, heads]
        return self._forward([Set(str(cell.site), values, positions=cell.where)], reads)

    def _forward(self, edits: Sequence[Set], reads: Reads) -> Tensor:
        self.passes += 1
        with Session(self.module, self.anatomy, edits=edits, inputs=self.base, family=self.family), torch.no_grad():
            logits = logits_of(self.module(**self.kwargs))
        assert logits is not None
        rows = torch.arange(len(reads.positions))[:, None]
        picked = logits[:, None] if logits.ndim == 2 else logits[rows, reads.positions]
        return picked if reads.columns is None else picked[..., list(reads.columns)]

    def compare(self, cell: Cell, answer: Answer, reads: Reads) -> float:
        """How far an answer is from a full forward pass; raises where rounding does not explain it."""
        whole = self.full(cell, reads)
        gap = float((whole - answer.logits)[answer.changed].abs().max()) if bool(answer.changed.any()) else 0.0
        bound = 2048 * torch.finfo(whole.dtype).eps * max(1.0, float(whole.abs().max()))
        if gap > bound:
            raise CheckFailed(
                f"{cell.site}: replay and a full forward pass differ by {gap:.3g} logits, more than the {bound:.3g}"
                " that rounding explains."
            )
        return gap


def _change(cell: Cell) -> Change:
    assert cell.site.layer is not None
    component = {"result": "z"}.get(cell.site.component, cell.site.component)
    return Change(cell.site.layer, component, cell.values, cell.where, cell.site.heads)


def differs(base: Tensor, source: Tensor, heads: tuple[int, ...] | None) -> Tensor:
    """[prompt, position] where two recordings of a site differ at all."""
    gap = (base != source) if heads is None else (base != source)[:, :, list(heads)]
    return gap.flatten(2).any(-1)


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
        moved = differs(old, new, site.heads)
        found.extend(Cell(site, new, chosen & moved) for chosen in where(site))
    return found
