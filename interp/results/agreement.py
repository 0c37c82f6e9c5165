"""How far attention weights and attributions of the same keys agree, and what deleting keys by either does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.hooks.head_names import columns_of, layer_name, layer_number
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines
from interp.results.figures.plots import line_of, map_of_heads
from interp.results.heads_table import HeadResult, HeadTable, of_method
from interp.results.intervals import apart, correlation, interval, mean_interval, ranks, weights

LEVELS = ("head", "layer", "all")
DRAWS = 1000
ORDERS = ("attention", "attribution")


@dataclass(frozen=True, eq=False)
class Agreement(HeadResult):
    """Weights and attributions of every key, per head and example; no N x N."""

    STEM = "agreement"

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
        return [site if level == "head" else layer_name(site) for site in self.sites]

    def _each(self, a: Tensor, b: Tensor, change: Any) -> Tensor:
        columns = []
        for n, keep in enumerate(self.counted):
            x, y = (change(one[:, n, keep].contiguous()) for one in (a, b))
            columns.append(correlation(x, y))
        return torch.stack(columns, 1)

    def to_frame(self, level: str = "head") -> Any:
        """One row per head (or layer, or one for all) and method: site, tower, layer, head, method, estimate, low,
        high, n (examples where it is defined). "input" is against what each key's input is worth, "head" against what
        this head's own attention to it is worth; both by magnitude."""
        if level == "head":
            return super().to_frame()
        names, found = self.correlations(level)
        towers = dict(zip(self._names(level), self.towers, strict=True))
        where = {
            "site": names, "tower": [towers[name] for name in names],
            **columns_of(None if level == "all" else layer_number(name) for name in names), "head": None,
        }  # fmt: skip
        import pandas

        parts = []
        for method, values in found.items():
            (low, high), defined = _ends(values), (~values.isnan()).sum(1)
            numbers = {"estimate": values.nanmean(1), "low": low, "high": high, "n": defined}
            parts.append(pandas.DataFrame({**where, "method": method, **numbers}))
        return pandas.concat(parts, ignore_index=True)

    def tables(self) -> list[HeadTable]:
        """One a way to compare; examples where it is not defined are left out."""
        return [
            HeadTable(self.sites, values, method, self.towers, estimate=values.nanmean(1), ends=_ends(values),
                      n=(~values.isnan()).sum(1))
            for method, values in self.correlations()[1].items()
        ]  # fmt: skip

    def top(self, n: int = 10, *, method: str | None = "input spearman") -> Any:
        """The n heads whose attention agrees most."""
        return super().top(n, method=method)

    def deletion(self) -> Any:
        """One row per order and share: the metric's mean and interval over examples; random orders averaged."""
        import pandas

        parts = []
        for name, values in self._curves().items():
            low, high = mean_interval(values)
            parts.append(
                pandas.DataFrame(
                    {"order": name, "share": self.shares, "metric": values.mean(1), "low": low, "high": high}
                )
            )
        return pandas.concat(parts, ignore_index=True)

    def auc(self) -> Any:
        """One row per order: the area under its curve, and how far it is below that of random orders. A faithful
        order has a small area."""
        import pandas

        chance = torch.trapezoid(self._curves()["random"], self.shares, dim=0)
        rows = []
        for name, values in self._curves().items():
            area = torch.trapezoid(values, self.shares, dim=0)
            low, high = mean_interval((chance - area)[None])
            rows.append(
                {"order": name, "auc": float(area.mean()), "below_random": float((chance - area).mean()),
                 "low": float(low), "high": float(high), "n": len(area)}
            )  # fmt: skip
        return pandas.DataFrame(rows)

    def _curves(self) -> dict[str, Tensor]:
        if not len(self.shares):
            raise InterpError("nothing was deleted: call interp.attribution.agree with shares=.")
        return {**dict(zip(ORDERS, self.curves, strict=True)), "random": self.random.mean(0)}

    def _figure(self) -> Figure:
        """The deletion curves, or without them the correlations as a map of heads."""
        if not len(self.shares):
            return map_of_heads(of_method(self.to_frame(), "input spearman"), "correlation", signed=True)
        groups = self.deletion().groupby("order", sort=False)
        lines = [line_of(str(name), part, "share", "metric") for name, part in groups]
        return Figure([Lines(lines, x="share of keys deleted", y="metric")])

    def __repr__(self) -> str:
        whole = self.to_frame("all").set_index("method")["estimate"]
        best = self.top(1).iloc[0]
        said = f"all heads together {whole['input spearman']:+.2f}, best {best['site']} {best['estimate']:+.2f}"
        return (
            f"Agreement of attention and attribution of {len(self.sites)} heads on {len(self.counted)} examples"
            f" (Spearman): {said}"
        )


def _summed(values: Tensor, groups: Tensor) -> Tensor:
    total = torch.zeros(int(groups.max()) + 1, *values.shape[1:], dtype=values.dtype)
    return total.index_add_(0, groups, values)


def _ends(values: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of each row's mean over the examples where it is defined."""
    defined = ~values.isnan()
    drawn = weights(apart(values.shape[1]), draws=DRAWS, seed=0)
    means = (drawn @ values.nan_to_num().T) / (drawn @ defined.double().T)
    return interval(means, n=defined.sum(1))
