"""Head importance by several measures side by side: estimates, ranks with intervals, and how far measures agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from interp.heads.measures.measured import Measured
from interp.hooks.head_names import layer_name
from interp.kernels.errors import InterpError
from interp.results import intervals as bootstrap
from interp.results.figures.figure import Figure
from interp.results.figures.plots import scaled
from interp.results.heads_table import HeadResult, HeadTable, largest, places

DRAWS = 1000
TOP = 10
HELD = ("values", "other", "seeds")
"""Tensors of a measure."""
SAID = ("method", "order", "reduce", "unit", "other_groups", "passes", "notes")
"""What else is kept of it."""


@dataclass(frozen=True, eq=False)
class Importance(HeadResult):
    """One `Measured` a method over the same heads and examples."""

    STEM = "importance"

    sites: tuple[str, ...]
    towers: tuple[str, ...]
    """The tower of each head, by its own name."""
    measures: tuple[Measured, ...]
    """One entry for each measure that was asked for."""
    groups: tuple[str, ...]
    """What each example shares with others (its template); intervals draw these first."""
    classes: tuple[str, ...] = ()
    """The right answer of each example, where it is known."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""
    seed: int = 0
    """The seed of the bootstrap intervals."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The measures there are."""
        return tuple(one.method for one in self.measures)

    def measure(self, method: str) -> Measured:
        """One measure, with its numbers per example."""
        for one in self.measures:
            if one.method == method:
                return one
        raise InterpError(f"no measure {method!r} was taken; there are {', '.join(self.methods)}.")

    @cached_property
    def _layers(self) -> Tensor:
        names = [layer_name(site) for site in self.sites]
        numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([numbers[name] for name in names])

    def _whole(self, one: Measured) -> Tensor:
        def even(n: int) -> Tensor:
            return torch.full((1, n), 1 / n, dtype=torch.float64)

        others = None if one.other is None else even(one.other.shape[1])
        return one.estimates(even(one.values.shape[1]), self._layers, others)[0]

    def _drawn(self, one: Measured) -> Tensor:
        """[draw, head]; measures on the same examples are drawn together."""
        own = self.groups if one.unit == "example" else bootstrap.apart(one.values.shape[1])
        shares = bootstrap.weights(own, draws=DRAWS, seed=self.seed)
        others = None
        if one.other is not None:
            others = bootstrap.weights(one.other_groups, draws=DRAWS, seed=self.seed + 1)
        return one.estimates(shares, self._layers, others)

    def estimate(self, method: str) -> Tensor:
        """[head], in the measure's own units and sign."""
        return self._whole(self.measure(method))

    def scores(self, method: str, *, signed: bool = False) -> dict[str, float]:
        """By site, larger where the measure ranks higher: what a pruner takes. `signed` keeps the sign where magnitude
        ranks, so that heads that work against the answer come last."""
        one, estimate = self.measure(method), self.estimate(method)
        ranked = estimate if signed and one.order == "abs" else one.oriented(estimate)
        return dict(zip(self.sites, ranked.tolist(), strict=True))

    def tables(self) -> list[HeadTable]:
        """One a measure, with its ranks: 1 is first."""
        return [self._table(one) for one in self.measures]

    def _table(self, one: Measured) -> HeadTable:
        estimate = self._whole(one)
        more = {"rank": bootstrap.ranks(one.oriented(estimate))}
        ends = bootstrap.interval(self._drawn(one), n=one.count)
        return HeadTable(self.sites, one.values, one.method, self.towers, estimate=estimate, ends=ends, more=more)

    def wide(self) -> Any:
        """One row per head, one column of estimates per measure."""
        import pandas

        return pandas.DataFrame(
            {**places(self.sites, self.towers), **{one.method: self._whole(one) for one in self.measures}}
        )

    def ranks(self, *, k: int | None = None) -> Any:
        """One row per measure and head, in order: its rank, the rank's interval over bootstrap draws, the share of
        draws in which it is among the first `k`, and the lowest and highest rank over seeds where there are several."""
        import pandas

        k, parts = self._count(k), []
        for one in self.measures:
            drawn = one.oriented(self._drawn(one))
            low, high = bootstrap.interval(bootstrap.ranks(drawn), n=one.count)
            first = bootstrap.membership(drawn, k).mean(0)
            seeds: dict[str, Any] = {"seed_low": torch.nan, "seed_high": torch.nan}
            if one.seeds is not None:
                each = bootstrap.ranks(one.oriented(one.seeds))
                seeds = {"seed_low": each.amin(0).numpy(), "seed_high": each.amax(0).numpy()}
            rank = bootstrap.ranks(one.oriented(self._whole(one)))
            numbers = {"rank": rank, "low": low, "high": high, f"among_{k}": first, **seeds}
            table = pandas.DataFrame({"site": list(self.sites), "method": one.method, **numbers})
            parts.append(table.sort_values("rank", kind="stable"))
        return pandas.concat(parts, ignore_index=True)

    def agreement(self, *, k: int | None = None) -> Any:
        """One row per pair of measures: Spearman correlation and overlap of the first `k`, each with its interval over
        draws, and the overlap that two random orders would have. Measures order by magnitude, but where one end is
        meant: see each one's `order`. Draws are noisier than the whole, so intervals are low, sometimes below the
        estimate; the correlation is over all heads and may be high where the first ones differ."""
        import pandas

        if len(self.measures) < 2 or len(self.sites) < 2:
            raise InterpError(
                f"measures agree or not over at least two heads and two measures; this table has {len(self.sites)} and"
                f" {len(self.measures)}."
            )
        k = self._count(k)
        kept = {one.method: (one.oriented(self._whole(one)), one.oriented(self._drawn(one))) for one in self.measures}
        rows = []
        for a, b in combinations(self.measures, 2):
            (x, xs), (y, ys) = kept[a.method], kept[b.method]
            n = min(a.count, b.count)
            low, high = map(float, bootstrap.interval(bootstrap.spearman(xs, ys), n=n))
            least, most = map(float, bootstrap.interval(bootstrap.overlap(xs, ys, k), n=n))
            rows.append(
                {"a": a.method, "b": b.method, "spearman": float(bootstrap.spearman(x, y)), "low": low, "high": high,
                 "k": k, "overlap": float(bootstrap.overlap(x, y, k)), "overlap_low": least, "overlap_high": most,
                 "chance": k / len(self.sites)}
            )  # fmt: skip
        return pandas.DataFrame(rows)

    def _count(self, k: int | None) -> int:
        if k is None:
            return min(TOP, -(-len(self.sites) // 3))
        if not 1 <= k <= len(self.sites):
            raise InterpError(f"k counts heads, from 1 to {len(self.sites)}; got {k}.")
        return k

    def by_class(self) -> Any:
        """One row per measure, class (right answer) and head: the mean over the class' examples and its interval."""
        import pandas

        if not self.classes:
            raise InterpError("the right answers are not known: give labels=, or a task.")
        parts = []
        for one in self.measures:
            if one.unit != "example" or one.reduce not in ("mean", "layer"):
                continue
            for name in dict.fromkeys(self.classes):
                rows = [n for n, mine in enumerate(self.classes) if mine == name]
                values = one.values[:, rows]
                own = tuple(self.groups[n] for n in rows)
                ends = bootstrap.mean_interval(values, draws=DRAWS, seed=self.seed, groups=own)
                parts.append(
                    HeadTable(self.sites, values, one.method, self.towers, ends=ends, more={"class": name}).frame()
                )
        return pandas.concat(parts, ignore_index=True)

    def top(self, n: int = 10, *, method: str | None = None) -> Any:
        """The n heads that a measure (the first unless named) ranks first."""
        one = self.measure(self.methods[0] if method is None else method)
        return largest(self._table(one).frame(), n, column="rank", by="low")

    def _figure(self) -> Figure:
        """Heads across, measures down, each row on its own scale with its largest magnitude 1."""
        values = torch.stack([self._whole(one) for one in self.measures])
        return Figure([scaled(values, self.methods, self.sites, per="row", x="head", y="measure")])

    def __repr__(self) -> str:
        best = self.top(1).iloc[0]
        return (
            f"Importance of {len(self.sites)} heads by {', '.join(self.methods)} on {len(self.groups)} examples; first"
            f" by {best['method']}: {best['site']} {best['estimate']:+.4g}"
            f"{bootstrap.spanned(best.get('low', torch.nan), best.get('high', torch.nan), '.4g')}"
        )

    def tensors(self) -> dict[str, Tensor]:
        """By the number of the measure."""
        named = {f"{n}.{name}": getattr(one, name) for n, one in enumerate(self.measures) for name in HELD}
        return {name: value for name, value in named.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """What is said of each measure."""
        said = [{name: getattr(one, name) for name in SAID} for one in self.measures]
        return {**super().facts(), "measures": said}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Importance:
        """Measures with their tensors again."""
        measures = []
        for n, said in enumerate(facts["measures"]):
            held = {name: tensors.get(f"{n}.{name}") for name in HELD}
            measures.append(Measured(**{**said, **held, "other_groups": tuple(said["other_groups"])}))
        return super().restored({**facts, "measures": tuple(measures)}, {})
