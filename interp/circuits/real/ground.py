"""What circuits are judged on: one pair of runs and one ablation, and f as their share of the gap between nothing and
the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Ablation, Embed, Runner
from interp.hooks.errors import InputsError


class Ground:
    """The runs of a pair under one ablation; a runner that is there already serves again."""

    def __init__(
        self,
        pair: GraphPair,
        ablation: Ablation = "resample",
        tell: Callable[[int], object] | None = None,
        embed: Embed = "whole",
    ) -> None:
        for name, given, known in (("ablation", ablation, get_args(Ablation)), ("embed", embed, get_args(Embed))):
            if given not in known:
                raise InputsError(f"{name} is {' or '.join(map(repr, known))}, got {given!r}.")
        self.pair, self.graph, self.ablation, self.tell = pair, pair.graph, ablation, tell
        self.runner = Runner(pair, ablation, embed)
        self.whole, self.nothing = self.runner.base, self.run(torch.zeros_like(self.graph.exists))
        self.gap = float((self.whole - self.nothing).mean())
        if abs(self.gap) < 1e-6 * max(1.0, float(self.whole.abs().max())):
            raise InputsError(
                f"the metric with all edges and with none differs by {self.gap:.3g}: there is nothing to be faithful"
                " to."
            )

    def run(self, mask: Tensor) -> Tensor:
        """The metric of a circuit, per row."""
        found = self.runner(mask)
        if self.tell is not None:
            self.tell(self.runner.count)
        return found

    def f(self, values: Tensor) -> float:
        """The share of the gap."""
        return float((values - self.nothing).mean()) / self.gap

    def of(self, mask: Tensor) -> float:
        """f of a circuit."""
        return self.f(self.run(mask))
