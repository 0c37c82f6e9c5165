"""Which head does what: values per kind, head and example, with intervals, as a table, a map and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.hooks.sites import nearest
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.plots import scaled
from interp.results.heads_table import HeadResult, HeadTable, largest
from interp.results.intervals import mean_interval

SURE = 0.5
"""Heads whose best value is at least this are named in the one-line summary: a convention of ours."""


@dataclass(frozen=True, eq=False)
class HeadRoles(HeadResult):
    """`values[kind]` [head, example]; kinds measured on random repeated tokens end in " @ repeated"."""

    STEM = "roles"

    sites: tuple[str, ...]
    """The head of each row, such as "L5.H3"."""
    values: Mapping[str, Tensor]
    """By kind of head: [head, example]."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A word on each head, such as the step of a positional one."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Kinds that have no meaning here, and why."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were measured."""
        return tuple(self.values)

    def of(self, kind: str) -> Tensor:
        """The mean of one kind, per head."""
        return self._values(kind).mean(1)

    def _values(self, kind: str) -> Tensor:
        found = self.values.get(kind, self.values.get(f"{kind} @ repeated"))
        if found is None:
            why = f" ({self.left_out[kind]})" if kind in self.left_out else nearest(kind, self.values)
            raise InterpError(f"no values of {kind!r}{why}; there are {', '.join(self.values)}.")
        return found

    def interval(self, kind: str, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each head's mean over examples."""
        return mean_interval(self._values(kind), level, draws=draws, seed=seed)

    def to_frame(self, kind: str | None = None) -> Any:
        """One row per head and kind (or those of one kind), and the word on each head."""
        return super().to_frame() if kind is None else self._table(kind).frame()

    def tables(self) -> list[HeadTable]:
        """One a kind."""
        return [self._table(kind) for kind in self.kinds]

    def _table(self, kind: str) -> HeadTable:
        note = self.notes.get(kind, ("",) * len(self.sites))
        return HeadTable(self.sites, self._values(kind), kind, more={"note": note})

    def table(self) -> Any:
        """Heads by kinds: the means."""
        import pandas

        return pandas.DataFrame({kind: self.of(kind).numpy() for kind in self.kinds}, index=list(self.sites))

    def top(self, n: int = 10, *, kind: str | None = None, method: str | None = None) -> Any:
        """The n heads with most of one kind (which is its method). Without one, each head's best kind: how far it is
        out in. `above` is in standard deviations over the mean of all heads, since some kinds are common to all; values
        below 0 count as none. The most extreme heads come first."""
        frame = self.to_frame(kind or method)
        if kind or method:
            return largest(frame, n, by="high")
        values = frame.groupby("method")["estimate"]
        frame["above"] = (frame["estimate"] - values.transform("mean")) / values.transform("std", ddof=0)
        able = frame[(frame["estimate"] > 0) & frame["above"].notna()]
        best = able.loc[able.groupby("site", sort=False)["above"].idxmax()]
        return largest(best, n, column="above", by="high").drop(columns=["layer", "head"])

    def describe(self, site: str) -> dict[str, float]:
        """Everything that was measured of one head."""
        if site not in self.sites:
            raise InterpError(f"no values of {site!r}; there are those of {', '.join(self.sites)}.")
        at = self.sites.index(site)
        return {kind: float(values[at].mean()) for kind, values in self.values.items()}

    def _figure(self, *, n: int | None = None, kinds: Sequence[str] | None = None) -> Figure:
        """Heads by kinds, each kind on its own scale; the n heads with the highest shares of a kind's largest value, or
        all, and some kinds, or all."""
        table = self.table() if kinds is None else self.table()[[self._known(kind) for kind in kinds]]
        if n is not None:
            best = (table / table.abs().max().clip(lower=1e-30)).max(axis=1)
            table = table.loc[best.sort_values(ascending=False, kind="stable").index[:n]]
        names = [kind.removesuffix(" @ repeated") for kind in table.columns]
        return Figure([scaled(table.values.T, names, list(table.index), per="column", x="kind", y="head")])

    def _known(self, kind: str) -> str:
        self._values(kind)
        return kind if kind in self.values else f"{kind} @ repeated"

    def tensors(self) -> dict[str, Tensor]:
        """The values by kind."""
        return dict(self.values)

    def facts(self) -> dict[str, Any]:
        """With the kinds in order."""
        return {**super().facts(), "kinds": self.kinds}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> HeadRoles:
        """Values by kind again."""
        values = {kind: tensors[kind] for kind in facts["kinds"]}
        notes = {kind: tuple(said) for kind, said in facts["notes"].items()}
        return super().restored({**facts, "values": values, "notes": notes}, {})

    def __repr__(self) -> str:
        best = {kind: (self.sites[int(self.of(kind).argmax())], float(self.of(kind).max())) for kind in self.kinds}
        sure = [f"{kind} {site} {value:.2f}" for kind, (site, value) in best.items() if value >= SURE]
        said = "; ".join(sure) if sure else f"no head reaches {SURE} in any"
        return f"HeadRoles of {len(self.sites)} heads in {len(self.kinds)} kinds: {said}"
