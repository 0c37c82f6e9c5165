"""What changes of attention do: curves over the radius for the worst direction and for random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.intervals import mean_interval
from interp.results.saved import Saved

NUMBERS = ("metric", "prediction", "heads", "looks")
"""What is measured: the metric's change; whether the first answer stays (1 or 0); the rank correlation of what each
head is worth (z . dM/dz) with what it was worth before; the share of weight that stays on its key."""


@dataclass(frozen=True, eq=False)
class AttentionPerturbation(Saved):
    """`worst` [number, radius, cell, example], `random` [number, radius, draw, cell, example]; numbers are NUMBERS."""

    STEM = "attention_perturbation"

    cells: tuple[str, ...]
    """Heads by name, or "all"."""
    radii: tuple[float, ...]
    """The norms of the change, in the order of `worst`."""
    worst: Tensor
    """[number, radius, cell, example]: with the change in the worst direction that was found."""
    random: Tensor
    """[number, radius, draw, cell, example]: with a change of that size in a random direction."""
    base: Tensor
    """[example]: the metric of the plain run."""
    rate: Tensor
    """[cell, example]: what the metric loses by radius to first order; the norm of its gradient where directions are
    free."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Tensor:
        """[radius, cell, example]: the metric's change in the worst direction."""
        return self.worst[0]

    def curve(self, number: str = "metric", cell: str | None = None) -> Any:
        """One number by radius (pandas): the worst direction with its interval over examples, and random ones (the mean
        over draws and examples)."""
        import pandas

        at, where = self._number(number), self._cell(cell)
        worst, random = self.worst[at, :, where], self.random[at, :, :, where]
        low, high = mean_interval(worst)
        mean = random.flatten(1).mean(1) if random.shape[1] else torch.full((len(worst),), torch.nan)
        return pandas.DataFrame(
            {"radius": self.radii, "worst": worst.mean(1), "low": low, "high": high, "random": mean}
        )

    def _number(self, name: str) -> int:
        if name not in NUMBERS:
            raise InputsError(f"no number {name!r}; there are {', '.join(NUMBERS)}.")
        return NUMBERS.index(name)

    def _cell(self, name: str | None) -> int:
        if name is not None and name not in self.cells:
            raise InputsError(f"nothing was changed at {name!r} alone; there are {', '.join(self.cells)}.")
        return 0 if name is None else self.cells.index(name)

    def to_frame(self) -> Any:
        """One row per cell and radius: site, radius, the metric's change as the estimate with its interval, the share
        of predictions that stay, how far explanations stay, and the same of random changes."""
        import pandas

        rows = []
        for c, cell in enumerate(self.cells):
            by = {name: self.curve(name, cell) for name in NUMBERS}
            for r, radius in enumerate(self.radii):
                now = by["metric"].iloc[r]
                said = {name: by[name]["worst"].iloc[r] for name in NUMBERS[1:]}
                rows.append(
                    {"site": cell, "radius": radius, "estimate": now["worst"], "low": now["low"], "high": now["high"],
                     "rate": float(self.rate[c].mean()), **said,
                     **{f"random {name}": by[name]["random"].iloc[r] for name in NUMBERS}}
                )  # fmt: skip
        return pandas.DataFrame(rows)

    def top(self, n: int = 10) -> Any:
        """The n cells whose worst change at the largest radius costs most."""
        frame = self.to_frame()
        return frame[frame["radius"] == self.radii[-1]].sort_values("estimate", kind="stable").head(n)

    def _figure(self) -> Figure:
        """The metric's change by radius, of the first cell."""
        curve = self.curve()
        radii = curve["radius"].tolist()
        lines = [Trace(name, radii, curve[name].tolist()) for name in ("worst", "random")]
        return Figure([Lines(lines, x="radius", y="change of the metric")])

    def __repr__(self) -> str:
        worst = self.worst[:, -1].mean((1, 2))
        random = self.random[:, -1].flatten(1).mean(1)
        return (
            f"AttentionPerturbation of {len(self.cells)} cells, {self.worst.shape[-1]} examples: at radius"
            f" {self.radii[-1]:g} the metric moves {float(worst[0]):+.3g} (random {float(random[0]):+.3g}), predictions"
            f" stay in {float(worst[1]):.0%} (random {float(random[1]):.0%})"
        )
