"""What learned gates say: per head and seed the gate and how surely it is open, the edits, and the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import Edit, Zero
from interp.hooks.errors import InputsError
from interp.results.heads_table import HeadResult, HeadTable, spread


@dataclass(frozen=True, eq=False)
class Gates(HeadResult):
    """`value` and `openness` [head, seed]."""

    STEM, TITLE = "gates", "gate open"

    sites: tuple[str, ...]
    towers: tuple[str, ...]
    """The tower of each head, by its own name."""
    value: Tensor
    """The gate after training: 0 passes nothing, 1 everything ("vib" may be any number)."""
    openness: Tensor
    """How surely the gate is open, 0..1."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def kept(self, threshold: float = 0.5, *, seed: int | None = None) -> Tensor:
        """[head]: the mean over seeds is above the threshold, or that of one run, counted from 0."""
        return self._openness(seed) > threshold

    def _openness(self, seed: int | None) -> Tensor:
        if seed is None:
            return self.openness.mean(1)
        if not 0 <= seed < self.openness.shape[1]:
            raise InputsError(f"there are {self.openness.shape[1]} runs, counted from 0; got seed={seed}.")
        return self.openness[:, seed]

    def edits(self, threshold: float = 0.5, *, seed: int | None = None) -> tuple[Edit, ...]:
        """Edits that take out the heads whose gates are closed; the others are as they were."""
        closed = ~self.kept(threshold, seed=seed)
        return tuple(Zero(f"{self.sites[n]}.z") for n in closed.nonzero().flatten().tolist())

    def tables(self) -> tuple[HeadTable, ...]:
        """Openness as the estimate, its least and most over seeds as the interval, n seeds, and the mean gate."""
        more = {"gate": self.value.mean(1)}
        return (HeadTable(self.sites, self.openness, "gates", self.towers, ends=spread(self.openness), more=more),)

    def training(self) -> Any:
        """Loss, cost and the share of open gates along the way, by seed."""
        import pandas

        runs = zip(self.meta["seeds"], self.meta["training"], strict=True)
        return pandas.DataFrame([{"seed": seed, **point} for seed, curve in runs for point in curve])

    def __repr__(self) -> str:
        open_ = int(self.kept().sum())
        same = torch.stack([self.kept(seed=n) for n in range(self.openness.shape[1])]).float().mean(0)
        torn = int(((same > 0) & (same < 1)).sum())
        return (
            f"Gates ({self.meta.get('kind', '')}) of {len(self.sites)} heads: {open_} open; {torn} open in some of"
            f" {self.openness.shape[1]} seeds and closed in others"
        )
