"""Several metrics of one sweep: what they read together, and each one's values from that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from interp.hooks.drive.sweep import Reads
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.stand.output import keeps_columns
from interp.metrics.judge import Judge, Metric, reads_of
from interp.metrics.shipped import Reading

Metrics = Metric | Mapping[str, Metric]


def columns_wanted(metrics: Mapping[str, Metric], x: Inputs, module: nn.Module) -> Tensor | None:
    """The columns of the inputs that any metric reads, if they are known before the run; None for all."""
    if not keeps_columns(module):
        return None
    if not all(isinstance(metric, Reading) for metric in metrics.values()):
        return None
    shape = torch.empty(x.batch, x.length, 0, device="meta")
    return torch.unique(torch.cat([reads_of(metric, x, shape).positions.flatten() for metric in metrics.values()]))


class Judges:
    """The metrics by name, on logits of the cells that any of them reads."""

    def __init__(self, metrics: Mapping[str, Metric], x: Inputs, *, classes: bool, length: int) -> None:
        shape = torch.empty(x.batch, *([] if classes else [length]), 0, device="meta")
        self.own = {name: reads_of(metric, x, shape) for name, metric in metrics.items()}
        self.judges = {name: Judge(metric, x, classes=classes) for name, metric in metrics.items()}
        self.reads = _union(list(self.own.values()))

    def __call__(self, read: Tensor) -> dict[str, Tensor]:
        """Each metric's values [row] from the logits read [row, read, column]."""
        return {name: judge(self._narrow(read, self.own[name])) for name, judge in self.judges.items()}

    def _narrow(self, read: Tensor, own: Reads) -> Tensor:
        if own is self.reads:
            return read
        at = torch.stack(
            [torch.tensor([row.index(i) for i in some]) for row, some in
             zip(self.reads.positions.tolist(), own.positions.tolist(), strict=True)]
        )  # fmt: skip
        read = read[torch.arange(len(read))[:, None], at]
        if own.columns is None:
            return read
        known = self.reads.columns
        return read[..., [c if known is None else known.index(c) for c in own.columns]]


def _union(every: list[Reads]) -> Reads:
    if len(every) == 1:
        return every[0]
    some = [set(row) for row in every[0].positions.tolist()]
    for reads in every[1:]:
        some = [have | set(row) for have, row in zip(some, reads.positions.tolist(), strict=True)]
    width = max(map(len, some))
    positions = torch.tensor([sorted(row) + [max(row)] * (width - len(row)) for row in some])
    if any(reads.columns is None for reads in every):
        return Reads(positions, None)
    return Reads(positions, tuple(sorted({c for reads in every for c in reads.columns or ()})))
