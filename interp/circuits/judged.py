"""How faithful a circuit is, with spread, chance and conditions beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import InterpError
from interp.saving import read, write

FORMAT = 1
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB asks."""
CONDITIONS = ("edges", "fraction", "nodes", "ablation", "level", "same_data", "task")
TENSORS = ("values", "whole", "nothing", "random")


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The metric [example] of the circuit, of the model and of nothing, and what goes with them."""

    values: Tensor
    whole: Tensor
    nothing: Tensor
    random: Tensor
    """f of random circuits of the same size and layer profile."""
    magnitude: float
    """f of the circuit whose senders' writes change most."""
    completeness: tuple[float, ...]
    """Gaps for parts of the circuit; the first is for all of it."""
    minimality: tuple[float, ...]
    """How far f falls for each edge or node taken away."""
    grid: tuple[float, ...] = GRID
    signed: tuple[float, ...] | None = None
    """f over the grid, edges by signed importance."""
    unsigned: tuple[float, ...] | None = None
    """f over the grid, edges by magnitude."""
    groups: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """The mean metric of the model beyond that of nothing."""
        return float((self.whole - self.nothing).mean())

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
        random, members = torch.Generator().manual_seed(seed), self._members()
        found = []
        for _ in range(draws):
            picks = torch.randint(len(members), (len(members),), generator=random).tolist()
            rows = torch.cat(
                [m[torch.randint(len(m), (len(m),), generator=random)] for m in (members[p] for p in picks)]
            )
            gap = float((self.whole - self.nothing)[rows].mean())
            found.append(float((self.values - self.nothing)[rows].mean()) / gap if gap else float("nan"))
        bounds = torch.tensor(found, dtype=torch.float64).nanquantile(
            torch.tensor([(1 - level) / 2, (1 + level) / 2]).double()
        )
        return float(bounds[0]), float(bounds[1])

    def _members(self) -> list[Tensor]:
        groups = self.groups or tuple(map(str, range(len(self.values))))
        return [torch.tensor([n for n, g in enumerate(groups) if g == name]) for name in dict.fromkeys(groups)]

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
                "group": list(self.groups),
            }
        )

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON holds them."""
        low, high = self.interval()
        curves = {} if self.signed is None or self.unsigned is None else {"cpr": self.cpr, "cmd": self.cmd}
        above = float((self.random >= self.f).double().mean()) if len(self.random) else None
        return {
            "f": self.f, "distance": self.distance, "low": low, "high": high, "spread": self.spread,
            "completeness": max(self.completeness, default=None),
            "completeness_of_all": self.completeness[0] if self.completeness else None,
            "minimality": median(map(abs, self.minimality)) if self.minimality else None,
            "random": {"n": len(self.random), "mean": float(self.random.mean()) if len(self.random) else None,
                       "max": float(self.random.max()) if len(self.random) else None, "at_least_f": above},
            "magnitude": self.magnitude, **curves,
            **{key: self.meta.get(key) for key in CONDITIONS},
        }  # fmt: skip

    def plot(self) -> Any:
        """f over the share of edges kept where there is a curve, and the circuit beside random ones (plotly)."""
        import plotly.graph_objects as go

        figure, here = go.Figure(), float(self.meta.get("fraction") or 0.0)
        for name, curve in (("by signed importance", self.signed), ("by magnitude", self.unsigned)):
            if curve is not None:
                figure.add_scatter(x=self.grid, y=curve, mode="lines+markers", name=name)
        figure.add_scatter(x=[here] * len(self.random), y=self.random.tolist(), mode="markers", name="random circuits",
                           marker={"symbol": "line-ew-open", "color": "#999999"})  # fmt: skip
        figure.add_scatter(
            x=[here], y=[self.f], mode="markers", name="circuit", marker={"size": 11, "symbol": "diamond"}
        )
        figure.add_hline(y=1, line_dash="dot")
        return figure.update_layout(xaxis_title="share of edges", yaxis_title="faithfulness f", xaxis_type="log")

    def __repr__(self) -> str:
        low, high = self.interval()
        return (
            f"Faithfulness {self.f:.3f} [{low:.3f}, {high:.3f}] on {len(self.values)} prompts, {self.meta.get('edges')}"
            f" edges ({self.meta.get('fraction', 0):.1%}), {self.meta.get('ablation')} ablation by"
            f" {self.meta.get('level')}s;"
            f" random circuits {float(self.random.mean()) if len(self.random) else float('nan'):.3f}, largest changes"
            f" {self.magnitude:.3f}"
        )

    def save(self, directory: str | Path) -> Path:
        """Write `faithfulness.safetensors` and `faithfulness.json`; read back with `Faithfulness.load`."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        plain = ("magnitude", "completeness", "minimality", "grid", "signed", "unsigned", "groups")
        about = {"format": FORMAT, "summary": self.summary(), "meta": dict(self.meta)}
        about |= {name: getattr(self, name) for name in plain}
        return write(directory, tensors, about, names=("faithfulness.safetensors", "faithfulness.json"))

    @classmethod
    def load(cls, directory: str | Path) -> Faithfulness:
        """Read what `save` wrote."""
        about, found = read(directory, ("faithfulness.safetensors", "faithfulness.json"), FORMAT)
        tensors: dict[str, Any] = dict(found)
        lists: dict[str, Any] = {n: None if about[n] is None else tuple(about[n]) for n in ("signed", "unsigned")}
        tuples: dict[str, Any] = {n: tuple(about[n]) for n in ("completeness", "minimality", "grid", "groups")}
        return cls(**tensors, magnitude=about["magnitude"], **tuples, **lists, meta=about["meta"])


def _area(xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    return sum((b - a) * (y + z) / 2 for (a, b), (y, z) in zip(pairwise(xs), pairwise(ys), strict=True))
