"""How far attention weights and attributions of the same keys agree, and what deleting keys by either does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.sites import parse
from interp.kernels.errors import InterpError
from interp.results.intervals import interval, ranks, weights
from interp.saving import read, write

FORMAT = 1
FILES = ("agreement.safetensors", "agreement.json")
LEVELS = ("head", "layer", "all")
TENSORS = ("attention", "own", "relevance", "counted", "shares", "curves", "random")
DRAWS = 1000
ORDERS = ("attention", "attribution")


@dataclass(frozen=True, eq=False)
class Agreement:
    """Weights and attributions of every key, per head and example; no N x N."""

    sites: tuple[str, ...]
    towers: tuple[str, ...]
    attention: Tensor
    """[head, example, key]: the weight, averaged over the rows that were asked for."""
    own: Tensor
    """[head, example, key]: what the metric owes to this head's attention to the key."""
    relevance: Tensor
    """[example, key]: what the metric owes to the key's input."""
    counted: Tensor
    """[example, key]: keys that are compared."""
    shares: Tensor
    """[step]: the share of keys that are deleted."""
    curves: Tensor
    """[order, step, example]: the metric with that share deleted, by `ORDERS`, largest first."""
    random: Tensor
    """[draw, step, example]: deleted in random orders."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def correlations(self, level: str = "head") -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """Names of the rows, and for each method the correlation [row, example]; NaN where a side does not vary."""
        if level not in LEVELS:
            raise InterpError(f"level is one of {', '.join(LEVELS)}; got {level!r}.")
        names = self._names(level)
        groups = torch.tensor([list(dict.fromkeys(names)).index(name) for name in names])
        count = torch.bincount(groups).double()
        looks = _summed(self.attention, groups) / count[:, None, None]
        owes = _summed(self.own, groups).abs()
        common = self.relevance.abs()[None].expand_as(looks)
        found = {}
        for against, other in (("input", common), ("head", owes)):
            found[f"{against} pearson"] = self._each(looks, other, lambda v: v)
            found[f"{against} spearman"] = self._each(looks, other, ranks)
        return tuple(dict.fromkeys(names)), found

    def _names(self, level: str) -> list[str]:
        if level == "all":
            return ["all"] * len(self.sites)
        return [site if level == "head" else site.rpartition(".H")[0] for site in self.sites]

    def _each(self, a: Tensor, b: Tensor, change: Any) -> Tensor:
        columns = []
        for n, keep in enumerate(self.counted):
            x, y = (change(one[:, n, keep].contiguous()) for one in (a, b))
            columns.append(_pearson(x, y))
        return torch.stack(columns, 1)

    def to_frame(self, level: str = "head") -> Any:
        """One row per head (or layer, or one for all) and method: site, tower, layer, head, method, estimate, low,
        high, n (examples where it is defined). "input" is against what each key's input is worth, "head" against what
        this head's own attention to it is worth; both by magnitude."""
        import pandas

        names, found = self.correlations(level)
        towers = dict(zip(self._names(level), self.towers, strict=True))
        parts = []
        for method, values in found.items():
            defined = ~values.isnan()
            drawn = weights(tuple(map(str, range(values.shape[1]))), draws=DRAWS, seed=0)
            low, high = interval((drawn @ values.nan_to_num().T) / (drawn @ defined.double().T))
            places = [parse(name) if level == "head" else None for name in names]
            parts.append(
                pandas.DataFrame(
                    {"site": names, "tower": [towers[name] for name in names],
                     "layer": [_layer(name) for name in names],
                     "head": [None if place is None else int(str(place.heads)) for place in places],
                     "method": method, "estimate": values.nanmean(1), "low": low, "high": high,
                     "n": defined.sum(1)}
                )
            )  # fmt: skip
        return pandas.concat(parts, ignore_index=True)

    def top(self, n: int = 10, *, method: str = "input spearman") -> Any:
        """The n heads whose attention agrees most."""
        frame = self.to_frame()
        if method not in set(frame["method"]):
            raise InterpError(f"no method {method!r}; there are {', '.join(dict.fromkeys(frame['method']))}.")
        return frame[frame["method"] == method].sort_values("estimate", ascending=False, kind="stable").head(n)

    def deletion(self) -> Any:
        """One row per order and share: the metric's mean and interval over examples; random orders averaged."""
        import pandas

        parts = []
        for name, values in self._curves().items():
            drawn = weights(tuple(map(str, range(values.shape[1]))), draws=DRAWS, seed=0)
            low, high = interval(drawn @ values.T)
            parts.append(
                pandas.DataFrame(
                    {"order": name, "share": self.shares, "metric": values.mean(1), "low": low, "high": high}
                )
            )
        return pandas.concat(parts, ignore_index=True)

    def auc(self) -> Any:
        """One row per order: the area under its curve, and by how much it lies below that of random orders. A faithful
        order has a small area."""
        import pandas

        chance = torch.trapezoid(self._curves()["random"], self.shares, dim=0)
        rows = []
        for name, values in self._curves().items():
            area = torch.trapezoid(values, self.shares, dim=0)
            drawn = weights(tuple(map(str, range(len(area)))), draws=DRAWS, seed=0)
            low, high = interval(drawn @ (chance - area))
            rows.append(
                {"order": name, "auc": float(area.mean()), "below_random": float((chance - area).mean()),
                 "low": float(low), "high": float(high), "n": len(area)}
            )  # fmt: skip
        return pandas.DataFrame(rows)

    def _curves(self) -> dict[str, Tensor]:
        if not len(self.shares):
            raise InterpError("nothing was deleted: call interp.attribution.agree with shares=.")
        return {**dict(zip(ORDERS, self.curves, strict=True)), "random": self.random.mean(0)}

    def plot(self) -> Any:
        """The deletion curves, or without them the correlations as a map of heads (plotly)."""
        import plotly.graph_objects as go

        if not len(self.shares):
            from interp.results.plots import map_of_heads

            frame = self.to_frame()
            return map_of_heads(frame[frame["method"] == "input spearman"], "correlation")
        figure = go.Figure()
        for name, part in self.deletion().groupby("order", sort=False):
            error = {"type": "data", "symmetric": False, "array": part["high"] - part["metric"],
                     "arrayminus": part["metric"] - part["low"]}  # fmt: skip
            figure.add_scatter(x=part["share"], y=part["metric"], error_y=error, mode="lines+markers", name=name)
        return figure.update_layout(xaxis_title="share of keys deleted", yaxis_title="metric")

    def __repr__(self) -> str:
        whole = self.to_frame("all").set_index("method")["estimate"]
        best = self.top(1).iloc[0]
        said = f"all heads together {whole['input spearman']:+.2f}, best {best['site']} {best['estimate']:+.2f}"
        return (
            f"Agreement of attention and attribution of {len(self.sites)} heads on {len(self.counted)} examples"
            f" (Spearman): {said}"
        )

    def save(self, directory: str | Path) -> Path:
        """Write `agreement.safetensors`, its table, and `agreement.json`; read back with `load`."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        about = {"format": FORMAT, "sites": self.sites, "towers": self.towers, "meta": dict(self.meta)}
        return write(directory, tensors, about, names=FILES, table=self.to_frame())

    @classmethod
    def load(cls, directory: str | Path) -> Agreement:
        """Read what `save` wrote."""
        about, held = read(directory, FILES, FORMAT)
        kept = {name: held[name] for name in TENSORS}
        return cls(sites=tuple(about["sites"]), towers=tuple(about["towers"]), meta=about["meta"], **kept)


def _layer(name: str) -> int | None:
    return None if name == "all" else int(name.partition(".H")[0].rpartition("L")[2])


def _summed(values: Tensor, groups: Tensor) -> Tensor:
    total = torch.zeros(int(groups.max()) + 1, *values.shape[1:], dtype=values.dtype)
    return total.index_add_(0, groups, values)


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = (one - one.mean(-1, keepdim=True) for one in (x, y))
    size = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(size > 0, (x * y).sum(-1) / size, torch.nan)
