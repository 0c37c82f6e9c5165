"""How faithful a circuit is, with spread, chance and conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.intervals import apart, interval, spanned, weights
from interp.results.saved import Saved

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB asks."""
CONDITIONS = ("edges", "fraction", "nodes", "ablation", "level", "same_data", "task")


@dataclass(frozen=True, eq=False)
class Faithfulness(Saved):
    """The metric [example] of the circuit, of the model and of nothing, and what goes with them."""

    STEM, TABLE = "faithfulness", None

    values: Tensor
    """The metric with the circuit, per example."""
    whole: Tensor
    """The metric with all edges, per example."""
    nothing: Tensor
    """The metric without any edge, per example."""
    random: Tensor
    """f of random circuits of the same size and layer profile."""
    magnitude: float
    """f of the circuit whose senders' writes change most; NaN where no random circuits were asked for."""
    completeness: tuple[float, ...]
    """Gaps for parts of the circuit; the first is for all of it."""
    minimality: tuple[float, ...]
    """How far f falls for each edge or node taken away."""
    grid: tuple[float, ...] = GRID
    """The shares of edges at which `signed` and `unsigned` were measured."""
    signed: tuple[float, ...] | None = None
    """f over the grid, edges by signed importance."""
    unsigned: tuple[float, ...] | None = None
    """f over the grid, edges by magnitude."""
    groups: tuple[str, ...] = ()
    """What each example shares with others (its template), for the intervals."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def gap(self) -> float:
        """The mean metric of the model beyond that of nothing."""
        return float((self.whole - self.nothing).mean())

    def gap_interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the gap; templates are drawn again, then prompts within each."""
        drawn = weights(self.groups or apart(len(self.values)), draws=draws, seed=seed)
        low, high = interval(drawn @ (self.whole - self.nothing).double(), level, n=len(self.values))
        return float(low), float(high)

    @property
    def sound(self) -> bool:
        """Whether these prompts tell the gap apart from 0; where they do not, faithfulness has no meaning, and f is a
        ratio of noise. Of a single prompt it cannot be said, and is taken to be so."""
        low, high = self.gap_interval()
        return not low <= 0 <= high

    @property
    def f(self) -> float:
        """The circuit's share of that; not clipped."""
        return float((self.values - self.nothing).mean()) / self.gap

    @property
    def distance(self) -> float:
        """|1 - f|."""
        return abs(1 - self.f)

    @property
    def spread(self) -> float:
        """Standard deviation over prompts of each one's part in f."""
        return float(((self.values - self.nothing) / self.gap).std()) if len(self.values) > 1 else 0.0

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of f: templates are drawn again, then prompts within each."""
        drawn = weights(self.groups or apart(len(self.values)), draws=draws, seed=seed)
        gaps, parts = (drawn @ (one - self.nothing).double() for one in (self.whole, self.values))
        low, high = interval(torch.where(gaps != 0, parts / gaps, torch.nan), level, n=len(self.values))
        return float(low), float(high)

    @property
    def cpr(self) -> float:
        """Area under f over the grid."""
        return _area(self.grid, self._curve(self.signed))

    @property
    def cmd(self) -> float:
        """Area under |1 - f| over the grid."""
        return _area(self.grid, tuple(abs(1 - f) for f in self._curve(self.unsigned)))

    @staticmethod
    def _curve(found: tuple[float, ...] | None) -> tuple[float, ...]:
        if found is None:
            raise InterpError("CPR and CMD are areas over circuits of many sizes: give scores= to interp.faithfulness.")
        return found

    def to_frame(self) -> Any:
        """One row per prompt: the metric of circuit, model and nothing, and the prompt's part in f."""
        import pandas

        part = (self.values - self.nothing) / self.gap
        return pandas.DataFrame(
            {
                "circuit": self.values,
                "model": self.whole,
                "nothing": self.nothing,
                "part": part,
                "group": list(self.groups or apart(len(self.values))),
            }
        )

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON holds them."""
        ends = [None if math.isnan(end) else end for end in self.interval()]
        curves = {} if self.signed is None or self.unsigned is None else {"cpr": self.cpr, "cmd": self.cmd}
        gap_ends = [None if math.isnan(end) else end for end in self.gap_interval()]
        above = float((self.random >= self.f).double().mean()) if len(self.random) else None
        return {
            "f": self.f, "distance": self.distance, "low": ends[0], "high": ends[1], "spread": self.spread,
            "completeness": max(self.completeness, default=None),
            "completeness_of_all": self.completeness[0] if self.completeness else None,
            "minimality": median(map(abs, self.minimality)) if self.minimality else None,
            "random": {"n": len(self.random), "mean": float(self.random.mean()) if len(self.random) else None,
                       "max": float(self.random.max()) if len(self.random) else None, "at_least_f": above},
            "magnitude": None if math.isnan(self.magnitude) else self.magnitude, **curves,
            "gap": self.gap, "gap_low": gap_ends[0], "gap_high": gap_ends[1], "sound": self.sound,
            **{key: self.meta.get(key) for key in CONDITIONS},
        }  # fmt: skip

    def _figure(self) -> Figure:
        """f over the share of edges kept where there is a curve, and the circuit compared with random ones."""
        here = float(self.meta.get("fraction", math.nan))
        curves = (("by signed importance", self.signed), ("by magnitude", self.unsigned))
        lines = [Trace(name, self.grid, curve) for name, curve in curves if curve is not None]
        if len(self.random):
            lines.append(Trace("random circuits", [here] * len(self.random), self.random.tolist(), kind="ticks"))
        low, high = self.interval()
        lines.append(Trace("circuit", [here], [self.f], [low], [high], kind="points"))
        return Figure([Lines(lines, x="share of edges", y="faithfulness f", log=True, levels=[("the model", 1.0)])])

    def __repr__(self) -> str:
        circuit = (
            f"{self.meta.get('edges')} edges ({self.meta.get('fraction', math.nan):.1%}), {self.meta.get('ablation')} "
            f"ablation by {self.meta.get('level')}s"
        )
        if not self.sound:
            return (
                f"There is nothing to be faithful to: on {len(self.values)} prompts the metric of the model is"
                f" {self.gap:+.3g}{spanned(*self.gap_interval())} above that without edges, and its interval contains"
                f" 0; {circuit}"
            )
        beside = (
            f"; random circuits {float(self.random.mean()):.3f}, largest changes {self.magnitude:.3f}"
            if len(self.random) else ""
        )  # fmt: skip
        said = f"Faithfulness {self.f:.3f}{spanned(*self.interval(), '.3f')} on {len(self.values)} prompts"
        return f"{said}, {circuit}{beside}"

    def facts(self) -> dict[str, Any]:
        """With the numbers that it comes to."""
        return {**super().facts(), "summary": self.summary()}


def _area(xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    return sum((b - a) * (y + z) / 2 for (a, b), (y, z) in zip(pairwise(xs), pairwise(ys), strict=True))
