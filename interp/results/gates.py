"""What learned gates say: per head and seed the gate and how surely it is open, the edits, and the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import Edit, Zero
from interp.hooks.errors import InputsError
from interp.hooks.sites import parse
from interp.saving import read, write

FORMAT = 1
FILES = ("gates.safetensors", "gates.json")


@dataclass(frozen=True, eq=False)
class Gates:
    """`value` and `openness` [head, seed]."""

    sites: tuple[str, ...]
    towers: tuple[str, ...]
    value: Tensor
    """The gate after training: 0 passes nothing, 1 everything ("vib" may be any number)."""
    openness: Tensor
    """How surely the gate is open, 0..1."""
    meta: Mapping[str, Any] = field(default_factory=dict)

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

    def to_frame(self) -> Any:
        """One row a head: openness as `estimate`, its least and most over seeds as `low` and `high`, n seeds, and the
        mean gate."""
        import pandas

        places = [parse(site) for site in self.sites]
        return pandas.DataFrame(
            {"site": self.sites, "tower": self.towers, "layer": [int(str(p.layers)) for p in places],
             "head": [int(str(p.heads)) for p in places], "method": "gates", "estimate": self.openness.mean(1),
             "low": self.openness.amin(1), "high": self.openness.amax(1), "n": self.openness.shape[1],
             "gate": self.value.mean(1)}
        )  # fmt: skip

    def top(self, n: int = 10) -> Any:
        """The n heads that are most surely open."""
        return self.to_frame().sort_values("estimate", ascending=False, kind="stable").head(n)

    def plot(self) -> Any:
        """Openness as a map of layers x heads (plotly)."""
        from interp.results.plots import map_of_heads

        return map_of_heads(self.to_frame(), "gate open")

    def training(self) -> Any:
        """Loss, cost and the share of open gates along the way, by seed."""
        import pandas

        runs = zip(self.meta["seeds"], self.meta["training"], strict=True)
        return pandas.DataFrame([{"seed": seed, **point} for seed, curve in runs for point in curve])

    def save(self, directory: str | Path) -> Path:
        """Write `gates.safetensors`, its table, and `gates.json`; read back with `load`."""
        tensors = {"value": self.value, "openness": self.openness}
        about = {"format": FORMAT, "sites": self.sites, "towers": self.towers, "meta": dict(self.meta)}
        return write(directory, tensors, about, names=FILES, table=self.to_frame())

    @classmethod
    def load(cls, directory: str | Path) -> Gates:
        """Read what `save` wrote."""
        about, held = read(directory, FILES, FORMAT)
        return cls(tuple(about["sites"]), tuple(about["towers"]), held["value"], held["openness"], about["meta"])

    def __repr__(self) -> str:
        open_ = int(self.kept().sum())
        same = torch.stack([self.kept(seed=n) for n in range(self.openness.shape[1])]).float().mean(0)
        torn = int(((same > 0) & (same < 1)).sum())
        return (
            f"Gates ({self.meta.get('kind', '')}) of {len(self.sites)} heads: {open_} open; {torn} open in some of"
            f" {self.openness.shape[1]} seeds and closed in others"
        )
