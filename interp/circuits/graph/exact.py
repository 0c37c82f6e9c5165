"""Each edge patched alone, exactly: what its receiver then takes from the residual, put there by replay.

The receiver's input is `in_v + write_u(source) - write_u(base)`; the norm in front of it is recomputed, and so is one
between the sender's attention and the residual. q, k and v of it come from the block itself, stopped at its attention;
an MLP's write from the whole block. The rest of the run is `hooks/drive/replay.py`'s, as in `interp.patch`; the logits
as receiver need no run. Cost: per edge the blocks above its receiver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interp.cells.journal import Values
from interp.cells.work import Bounds, Builder, Floors, begin, gathered
from interp.circuits.graph.changes import GraphPair, Written
from interp.hooks.drive.questions import Cell, Reads
from interp.hooks.drive.recording import Recording
from interp.hooks.drive.sweep import Sweep
from interp.hooks.drive.tail import Tail
from interp.hooks.edits.edits import Set
from interp.hooks.sites import Site

EDGES = 64
"""In a chunk, at least those of one sender into one layer."""


def exact(pair: GraphPair, more: Written) -> Tensor:
    """[edge, row], in the graph's order."""
    work = Wires(pair, more)
    values, _ = gathered(work, begin(work).run())
    return values[""][work.places]


def change_of(pair: GraphPair, more: Written, u: int, dtype: torch.dtype) -> Tensor:
    """What a sender alone writes more [row, position, d], as the base's norms have it."""
    sender, carries = pair.graph.senders[u], pair.carries
    if sender.layer is None:
        return more.embed.to(dtype)
    if sender.heads is None:
        return more.mlp[sender.layer].to(dtype)
    layer = sender.layer
    only = torch.zeros_like(more.z[layer])
    only[:, :, sender.heads[0]] = more.z[layer][:, :, sender.heads[0]]
    with torch.no_grad():
        out = carries.project(layer, only.to(dtype))
        if carries.linear(layer):
            return carries.write(layer, out)
        plain = carries.out[layer].reshape(out.shape)
        return carries.write(layer, plain + out) - carries.write(layer, plain)


class Wires:
    """Every edge as a cell, in the order they are patched: into a layer sender by sender, then into the logits."""

    def __init__(
        self, pair: GraphPair, more: Written, task: Mapping[str, Any] | None = None, *, product: str | None = None,
        budget: int | None = None, recipe: Builder | None = None,
    ) -> None:  # fmt: skip
        self.pair, self.graph, self.blocks, self.more = pair, pair.graph, pair.blocks, more
        self.task, self.recipe, self.model = task or {}, recipe, pair.model
        model = pair.model
        self.passed = pair.blocks.record(pair.kwargs(), take=pair.carries.take, wanted=pair.carries.wanted)
        self.judges = pair.judges(self.passed)
        self.sweep = Sweep(
            model.module, model.anatomy, pair.base, pair.kwargs(), family=model.family, product=product, budget=budget
        )
        self.groups = [*self._groups()]

    @property
    def product(self) -> str:
        """As the sweep has it."""
        return self.sweep.product

    @property
    def count(self) -> int:
        """How many edges there are."""
        return sum(len(readers) for _, _, readers in self.groups)

    @property
    def names(self) -> dict[str, int]:
        """An effect per row."""
        return {"": self.pair.base.batch}

    @cached_property
    def places(self) -> Tensor:
        """Which cell each edge of the graph is, in the graph's order."""
        cells = {(u, v): n for n, (u, v) in enumerate((u, v) for _, u, readers in self.groups for v in readers)}
        return torch.tensor([cells[u, v] for u, v in self.graph.edges])

    def _groups(self) -> Iterator[tuple[int | None, int, list[int]]]:
        """Layer (None for the logits), sender and its receivers there, which are patched in one go."""
        exists, receivers = self.graph.exists.tolist(), self.graph.receivers
        for layer in self.blocks.layers:
            here = [v for v, site in enumerate(receivers) if site.layer == layer]
            here.sort(key=lambda v: receivers[v].heads is None)  # heads first, then the MLP
            for u, row in enumerate(exists):
                if readers := [v for v in here if row[v]]:
                    yield layer, u, readers
        last = len(receivers) - 1
        yield from ((None, u, [last]) for u, row in enumerate(exists) if row[last])

    def bounds(self) -> Bounds:
        """Whole groups, up to `EDGES` of them together."""
        found, low, high = [], 0, 0
        for _, _, readers in self.groups:
            if high > low and high + len(readers) - low > EDGES:
                found.append((low, high))
                low = high
            high += len(readers)
        return [*found, (low, high)] if high > low else found

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """The effects of the edges of some groups."""
        found, at = [], 0
        for layer, u, readers in self.groups:
            if low <= at and at + len(readers) <= high:
                found += self._into(layer, u, readers) if layer is not None else [self._logits(u)]
            at += len(readers)
        return {"": torch.stack(found)}, {"": 0.0}

    @property
    def reads(self) -> Reads:
        """What of the logits is read."""
        return self.judges.reads

    def _into(self, layer: int, u: int, readers: list[int]) -> list[Tensor]:
        """The effects [row] of a sender's edges into a layer."""
        cells = self._cells(layer, u, readers)
        found = [torch.empty(0)] * len(cells)
        for number, answer in enumerate(self.sweep.run(cells, self.reads)):
            gap = (self.judges(answer.logits)[""] - self.judges(answer.unchanged)[""]).double().cpu()
            found[number] = torch.where(answer.changed, gap, 0.0)
        return found

    def _cells(self, layer: int, u: int, readers: list[int]) -> list[Cell]:
        change, every = self._change(u), torch.ones(self.pair.base.batch, self.passed.length, dtype=torch.bool)
        entered, found, at = self.passed.entered[layer], [], dict[str, Tensor]()
        if any(self.graph.receivers[v].heads is not None for v in readers):
            moved = entered + change.to(entered.device)
            at = dict(self.blocks.run(self.passed, layer, moved, record=["q", "k", "v"], until="qkv").at)
        for v in readers:
            site = self.graph.receivers[v]
            if site.heads is None:
                found.append(Cell(self.blocks.site(layer, "mlp_write"), self._mlp(layer, change), every))
            else:
                part = site.component[0]
                found.append(Cell(Site(site.tower, layer, part, site.heads), at[part], every))
        return found

    def _mlp(self, layer: int, change: Tensor) -> Tensor:
        """What the MLP writes when it reads this much more."""
        entered = self.passed.entered[layer]
        if self.graph.by_index[layer].parallel:
            moved = entered + change.to(entered.device)
            return self.blocks.run(self.passed, layer, moved, record=["mlp_write"]).at["mlp_write"]
        mid = self.blocks.run(self.passed, layer, entered, record=["resid_mid"]).at["resid_mid"]
        put = Set(str(self.blocks.site(layer, "resid_mid")), mid + change.to(mid.device))
        return self.blocks.run(self.passed, layer, entered, edits=[put], record=["mlp_write"]).at["mlp_write"]

    def _change(self, u: int) -> Tensor:
        return change_of(self.pair, self.more, u, self.passed.left.dtype)

    @cached_property
    def _tail(self) -> Tail:
        passed = self.passed
        return Tail(
            self.pair.model.module, self.blocks.tower, self.pair.kwargs(), left=passed.left, logits=passed.logits
        )

    @cached_property
    def _plain(self) -> Tensor:
        return self._judged(self._tail, self.passed)

    def _logits(self, u: int) -> Tensor:
        """The effect [row] of what the logits read of a sender."""
        with torch.no_grad():
            return self._judged(self._tail, self.passed, self._change(u)) - self._plain

    def _judged(self, tail: Tail, passed: Recording, change: Tensor | None = None) -> Tensor:
        left = passed.left if change is None else passed.left + change.to(passed.left.device)
        return self.judges(tail.logits(tail.normed(left, "final"), self.reads))[""].double().cpu()
