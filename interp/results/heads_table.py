"""One table of heads: a number per head and example by some method, and what follows from it, written once.

`HeadTable` is the table of one method: estimates with intervals as rows of site, tower, layer, head, method, estimate,
low, high, n. A result that speaks of heads is a `HeadResult`: it says which tables it has, and gets `to_frame`,
`to_xarray`, `top` and `plot` from them, and its files from `Saved`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from interp.hooks.head_names import columns_of, head_place, is_head
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.plots import map_of_heads
from interp.results.intervals import mean_interval
from interp.results.saved import Saved

By = Literal["abs", "high", "low"]
SPELLED = ("estimate", "score", "first")
"""What results call their number, in the order they are looked for."""
EXPECTED = (
    "expected a table with the columns site and estimate, as interp.patch, attribute, importance, sinks,"
    " retrieval_heads and head_roles return it."
)


@dataclass(frozen=True, eq=False)
class HeadTable:
    """`values` [head, example] by one method."""

    sites: tuple[str, ...]
    """The head of each row."""
    values: Tensor
    """[head, example]."""
    method: str
    """The name of the method that gave the numbers."""
    towers: tuple[str | None, ...] | None = None
    """By their own names; as the sites spell them, if not given."""
    estimate: Tensor | None = None
    """[head], where it is not the mean."""
    ends: tuple[Tensor, Tensor] | None = None
    """The interval, where it is not the bootstrap's over examples."""
    n: Tensor | int | None = None
    """What the estimate is made of, where it is not every example."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, a value a head."""

    def frame(self) -> Any:
        """One row a head."""
        import pandas

        low, high = mean_interval(self.values) if self.ends is None else self.ends
        numbers = {
            "estimate": self.values.mean(1) if self.estimate is None else self.estimate,
            "low": low, "high": high, "n": self.values.shape[1] if self.n is None else self.n,
        }  # fmt: skip
        return pandas.DataFrame({**places(self.sites, self.towers), "method": self.method, **numbers, **self.more})


def places(sites: Sequence[str], towers: Sequence[str | None] | None = None) -> dict[str, list[Any]]:
    """The columns that say which heads these are."""
    found = [head_place(site) for site in sites]
    return {
        "site": list(sites),
        "tower": [place.tower for place in found] if towers is None else list(towers),
        **columns_of(place.layer for place in found),
        "head": [place.head for place in found],
    }


class HeadResult(Saved):
    """A result with a table of heads, or one a method."""

    sites: tuple[str, ...]
    """The head of each row, such as "L5.H3"."""
    TITLE = "estimate"
    """What the map of heads shows."""

    def tables(self) -> Sequence[HeadTable]:
        """Its tables, by method."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """One row per method and head: site, tower, layer, head, method, estimate, low, high, n, and what this result
        knows besides."""
        import pandas

        return pandas.concat([table.frame() for table in self.tables()], ignore_index=True)

    def to_xarray(self) -> Any:
        """The estimates as a labelled array (xarray) [layer, head], before them method and tower where there are
        several."""
        return labelled(self.to_frame())

    def top(self, n: int = 10, *, method: str | None = None) -> Any:
        """The n heads with the highest estimates, by one method: the first, unless named."""
        return largest(of_method(self.to_frame(), method), n, by="high")

    def _figure(self, *args: Any, **which: Any) -> Figure:
        return self._map(*args, **which)

    def _map(self, *, method: str | None = None) -> Figure:
        """The estimates of one method, the first unless named, as a map of layers x heads."""
        return map_of_heads(of_method(self.to_frame(), method), self.TITLE)


NAMING = ("site", "sender", "receiver", "method", "estimate", "low", "high")
"""Columns that a table of the largest rows keeps in any case; the interval, as far as there is one."""
POSITIONS = "there is a position axis; a row is a head: patch with positions='joint'."


def read_heads(result: Any) -> Any:
    """The rows of heads of any result, or of a table (pandas) of anyone: its number as `estimate`, other columns as
    they are. Cells that are no heads are left out where the table says what they are (`component`), else refused."""
    kind = type(result).__name__
    if not hasattr(result, "to_frame") and not hasattr(result, "columns"):
        raise InterpError(f"a {kind} has no to_frame(): {EXPECTED}")
    frame = result.to_frame() if hasattr(result, "to_frame") else result
    number = next((name for name in SPELLED if name in frame), None)
    if number is None or "site" not in frame:
        raise InterpError(f"a {kind} has no rows of heads but {', '.join(map(str, frame))}: {EXPECTED}")
    if "position" in frame and frame["position"].notna().any():
        raise InterpError(POSITIONS)
    heads = [is_head(str(site)) for site in frame["site"]]
    if not all(heads) and "component" not in frame:
        raise InterpError(f"{str(frame['site'].iloc[heads.index(False)])!r} is not one head; rows are heads: 'L5.H3'.")
    if not any(heads):
        raise InterpError(f"no heads among {', '.join(map(str, frame['site'][:3]))}: patch sites such as 'L*.H*.z'.")
    return frame[heads].assign(estimate=frame[number][heads])


def method_of(result: Any) -> str:
    """What a result calls its method, else what it is."""
    return str((getattr(result, "meta", None) or {}).get("method") or type(result).__name__.lower())


def of_method(frame: Any, method: str | None) -> Any:
    """The rows of one method, the first unless named."""
    known = list(dict.fromkeys(frame["method"]))
    if method is not None and method not in known:
        raise InterpError(f"no method {method!r} here; there are {', '.join(known)}.")
    return frame[frame["method"] == (known[0] if method is None else method)] if known else frame


def largest(frame: Any, n: int, *, column: str = "estimate", by: By = "abs") -> Any:
    """The n rows with the largest numbers in a column, by magnitude or at one end; what is the same in every row of the
    whole table is in `.attrs["same"]` instead of a column."""
    orders = {"abs": frame[column].abs(), "high": frame[column], "low": -frame[column]}
    if by not in orders:
        raise InterpError(f"by is one of {', '.join(map(repr, orders))}, got {by!r}.")
    order = orders[by]
    rows = frame.loc[order.sort_values(ascending=False, kind="stable").index].head(n)
    empty = [name for name in frame if name not in (column, *NAMING[:-2]) and not frame[name].notna().any()]
    same = [name for name in frame if name not in (column, *NAMING, *empty) and _same(frame[name])]
    rows = rows.drop(columns=[*empty, *same])
    rows.attrs["same"] = {name: frame[name].iloc[0] for name in same}
    return rows


def _same(column: Any) -> bool:
    """Whether several rows have one value."""
    return len(column) > 1 and bool(column.notna().all()) and column.map(repr).nunique() == 1


def labelled(frame: Any, *, outer: Sequence[str] = ("method", "tower")) -> Any:
    """The estimates of a table as an array with named axes: `outer` ones where there are several, then those of layer,
    head and position that its rows have; where rows have no axes in common, they are listed by site."""
    several = [name for name in outer if frame[name].nunique(dropna=False) > 1]
    held = [name for name in ("layer", "head", "position") if name in frame and frame[name].notna().any()]
    axes = [*several, *held]
    if not held or frame[axes].isna().any(axis=None) or frame.duplicated(axes).any():
        axes = [*(one for one in several if one == "method"), "site", *(one for one in held if one == "position")]
    return frame.set_index(axes)["estimate"].to_xarray()


def spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most over the last axis, for runs rather than examples; of one run there is none."""
    if values.shape[-1] < 2:
        nothing = torch.full(values.shape[:-1], torch.nan, dtype=torch.float64)
        return nothing, nothing
    return values.amin(-1), values.amax(-1)
