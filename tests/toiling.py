"""Work for many processes: cells that are a pass of a model each, with faults that happen when they are told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.cells.work import Builder
from interp.provenance import model_hash


class Little(nn.Module):
    """Words to words by one matrix, there and back, with a buffer of 16 bits and a mark on a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.back = nn.Linear(16, 50, bias=False)
        self.back.weight = self.words.weight
        self.register_buffer("scale", torch.linspace(1, 2, 16).to(torch.bfloat16))
        self.words.weight.marked = True

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.back(self.words(ids) * self.scale.float())
        return made


@dataclass(frozen=True)
class Faults:
    """What goes wrong in which cells; `notes` is a directory where processes leave word, so that they can be found."""

    notes: str = ""
    seconds: float = 0.0
    raises: Sequence[int] = ()
    raises_once: Sequence[int] = ()
    kills_once: Sequence[int] = ()
    kills: Sequence[int] = ()
    most: int = 10**9
    """More cells at once than this take too much memory."""

    def first(self, cell: int) -> bool:
        path = Path(self.notes) / f"once-{cell}"
        there = path.exists()
        path.touch()
        return not there

    def strike(self, low: int, high: int) -> None:
        if self.notes:
            (Path(self.notes) / f"pid-{os.getpid()}").touch()
        time.sleep(self.seconds * (high - low))
        if high - low > self.most:
            raise torch.OutOfMemoryError(f"no room for {high - low} cells")
        for cell in range(low, high):
            if cell in self.raises or (cell in self.raises_once and self.first(cell)):
                raise ValueError(f"nothing good comes of {cell}")
            if cell in self.kills or (cell in self.kills_once and self.first(cell)):
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Toil:
    """So many cells, in chunks of `size`: of each, what the model makes of its number."""

    model: Any
    count: int
    size: int
    faults: Faults = field(default_factory=Faults)
    product: str = "torch"

    @property
    def task(self) -> Mapping[str, Any]:
        return {"method": "toil", "count": self.count, "size": self.size, "model": model_hash(self.model.module)}

    @property
    def names(self) -> Mapping[str, int]:
        return {"first": 3, "second": 1}

    @property
    def recipe(self) -> Builder:
        return Builder("toiling:again", {"count": self.count, "size": self.size, "faults": asdict(self.faults)})

    def bounds(self) -> list[tuple[int, int]]:
        return [(low, min(low + self.size, self.count)) for low in range(0, self.count, self.size)]

    def compute(self, low: int, high: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        self.faults.strike(low, high)
        with torch.no_grad():
            rows = [self.model.module(torch.tensor([cell % 50, 3, 4])).sum(0) for cell in range(low, high)]
        made = torch.stack(rows).double()
        return {"first": made[:, :3], "second": made[:, 3:4]}, {"first": float(made.max()), "second": 0.5}


def again(model: Any, count: int, size: int, faults: dict[str, Any]) -> Toil:
    """The same work in another process."""
    return Toil(model, count, size, Faults(**faults))


@dataclass(frozen=True)
class Lying(Toil):
    """Where the weights lie: whether in memory that several processes see and nobody here may write to."""

    @property
    def recipe(self) -> Builder:
        return Builder("toiling:lying", {"count": self.count, "size": self.size})

    def compute(self, low: int, high: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        place = self.model.module.words.weight.data_ptr()
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        mine = [how for where, how, *_ in maps if _within(where, place)]
        found = torch.full((high - low, 1), float(mine == ["r--s"] or mine == ["rw-s"]))
        tied = self.model.module.words.weight is self.model.module.back.weight
        return {"first": found.double().expand(-1, 3), "second": torch.full((high - low, 1), float(tied))}, {}


def _within(where: str, place: int) -> bool:
    low, _, high = where.partition("-")
    return int(low, 16) <= place < int(high, 16)


def lying(model: Any, count: int, size: int) -> Lying:
    return Lying(model, count, size)
