"""Every edge patched by itself, exactly: what its receiver then takes from the residual, put there by replay.

The receiver's input is `in_v + write_u(source) - write_u(base)`; the norm in front of it is recomputed, and so is one
between the sender's attention and the residual. q, k and v of it come from the block itself, stopped at its attention;
an MLP's write from the whole block. The rest of the run is `hooks/drive/replay.py`'s, as in `interp.patch`; the logits
as receiver need no run. Cost: per edge the blocks above its receiver.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair, Written
from interp.hooks.drive.questions import Cell, Reads
from interp.hooks.drive.recording import Recording
from interp.hooks.drive.sweep import Sweep
from interp.hooks.drive.tail import Tail
from interp.hooks.edits.edits import Set
from interp.hooks.sites import Site


def exact(pair: GraphPair, more: Written) -> Tensor:
    """[row, sender, receiver]."""
    return _Exact(pair, more).scores()


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


class _Exact:
    def __init__(self, pair: GraphPair, more: Written) -> None:
        self.pair, self.graph, self.blocks, self.more = pair, pair.graph, pair.blocks, more
        model = pair.model
        self.passed = pair.blocks.record(pair.kwargs(), take=pair.carries.take, wanted=pair.carries.wanted)
        self.judges = pair.judges(self.passed)
        self.sweep = Sweep(model.module, model.anatomy, pair.base, pair.kwargs(), family=model.family)

    def scores(self) -> Tensor:
        counts = len(self.graph.senders), len(self.graph.receivers)
        found = torch.zeros(self.pair.base.batch, *counts, dtype=torch.float64)
        for layer in self.blocks.layers:
            for u, v, effect in self._into(layer):
                found[:, u, v] = effect
        for u, effect in self._logits():
            found[:, u, -1] = effect
        return found

    @property
    def reads(self) -> Reads:
        return self.judges.reads

    def _into(self, layer: int) -> Iterator[tuple[int, int, Tensor]]:
        """The effects of every edge into a layer, sender by sender."""
        for u, sender in enumerate(self.graph.senders):
            cells = self._cells(layer, u)
            if sender.layer is not None and sender.layer > layer:
                return
            for number, answer in enumerate(self.sweep.run([cell for _, cell in cells], self.reads)):
                gap = (self.judges(answer.logits)[""] - self.judges(answer.unchanged)[""]).double().cpu()
                yield u, cells[number][0], torch.where(answer.changed, gap, 0.0)

    def _cells(self, layer: int, u: int) -> list[tuple[int, Cell]]:
        readers = [v for v, site in enumerate(self.graph.receivers) if site.layer == layer and self.graph.exists[u, v]]
        if not readers:
            return []
        change, every = self._change(u), torch.ones(self.pair.base.batch, self.passed.length, dtype=torch.bool)
        entered, found = self.passed.entered[layer], []
        heads = [v for v in readers if self.graph.receivers[v].heads is not None]
        at = (
            self.blocks.run(
                self.passed, layer, entered + change.to(entered.device), record=["q", "k", "v"], until="qkv"
            ).at
            if heads
            else {}
        )
        for v in heads:
            site = self.graph.receivers[v]
            part = site.component[0]
            found.append((v, Cell(Site(site.tower, layer, part, site.heads), at[part], every)))
        for v in set(readers) - set(heads):
            found.append((v, Cell(self.blocks.site(layer, "mlp_write"), self._mlp(layer, change), every)))  # noqa: PERF401
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

    def _logits(self) -> Iterator[tuple[int, Tensor]]:
        passed, model = self.passed, self.pair.model
        tail = Tail(model.module, self.blocks.tower, self.pair.kwargs(), left=passed.left, logits=passed.logits)
        with torch.no_grad():
            plain = self._judged(tail, passed)
            for u in range(len(self.graph.senders)):
                yield u, self._judged(tail, passed, self._change(u)) - plain

    def _judged(self, tail: Tail, passed: Recording, change: Tensor | None = None) -> Tensor:
        left = passed.left if change is None else passed.left + change.to(passed.left.device)
        return self.judges(tail.logits(tail.normed(left, "final"), self.reads))[""].double().cpu()
