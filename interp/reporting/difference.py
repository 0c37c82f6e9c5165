"""What changed between two reports: how far each method's ranks agree, and which heads moved beyond their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.attribution.verify import pearson, ranks
from interp.explorer.page import page
from interp.heads.rows import read_rows
from interp.kernels.errors import InterpError
from interp.results.figures.drawn import Drawn
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.saving import renamed

MOST, SAID = 24, 6
"""Heads that are named in the picture, and methods that have a sentence."""
KEY = ["method", "direction", "tower", "site"]


@dataclass(frozen=True, eq=False)
class Difference(Drawn):
    """`methods`: Spearman and overlap of the first k; `heads`: both values of every head, the largest change first."""

    a: str
    """The directory of the first report."""
    b: str
    """The directory of the second report."""
    methods: Any
    """A frame with one row for each method: rank correlation and overlap."""
    heads: Any
    """A frame with both values of each head, the largest change first."""

    def save(self, path: str | Path) -> Path:
        """Write it as a page of its own: what moved, how far ranks agree, a map of the changes, all rows."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        renamed(file, page(self._payload()).encode())
        return file

    def _payload(self) -> dict[str, Any]:
        heads, moved = self.heads, int(self.heads["moved"].sum())
        pairs = zip(heads["method"], heads["direction"], strict=True)
        names = [_named(*pair) for pair in pairs]
        scores = heads[["site"]].assign(method=names, estimate=heads["change"])
        facts = [
            ("before", self.a),
            ("after", self.b),
            ("values", str(len(heads))),
            ("moved", str(moved)),
        ]
        picture = self.figure()
        return {
            "title": f"What changed from {Path(self.a).name} to {Path(self.b).name}", "finding": repr(self),
            "facts": facts, "scores": scores,
            "methods": {name: {"kind": "signed", "unit": "after minus before"} for name in dict.fromkeys(names)},
            "lead": {"title": "What moved", "says": self._said(), "picture": picture.png(), "alt": repr(picture)},
            "tables": [{"title": "How far the ranks agree", "about": "", "rows": self.methods},
                       {"title": "Both values of every head", "about": "Those that moved first.", "rows": heads}],
        }  # fmt: skip

    def _said(self) -> list[str]:
        """One sentence a method."""
        made = []
        for one in self.methods.head(SAID).to_dict("records"):
            alike = "do not vary" if one["spearman"] is None else f"agree to {one['spearman']:.2f} (Spearman)"
            made.append(f"{_named(one['method'], one['direction'])}: ranks {alike}; of the first {one['k']} heads"
                        f" {one['overlap']:.0%} are the same; {one['moved']} of {one['heads']} moved.")  # fmt: skip
        return made

    def _figure(self, *, method: str | None = None) -> Figure:
        """Every head before and after by one method, the first of the reports unless named."""
        first = self.methods["method"].iloc[0] if method is None else method
        mine = self.heads[self.heads["method"] == first]
        if mine.empty:
            raise InterpError(f"no method {first!r} in both; there are {', '.join(self.methods['method'].unique())}.")
        lines = []
        for moved, name in ((False, "within the intervals"), (True, "moved")):
            part = mine[mine["moved"] == moved]
            labels = part["site"].tolist() if moved and len(part) <= MOST else ()
            if len(part):
                lines.append(Trace(name, part["a"].tolist(), part["b"].tolist(), kind="points", labels=labels))
        return Figure([Lines(lines, x="before", y="after", square=True, title=str(first))])

    def __repr__(self) -> str:
        moved = int(self.heads["moved"].sum())
        if not moved:
            return f"No head moved beyond its intervals between {self.a} and {self.b}."
        best = self.heads.iloc[0]
        return (
            f"{moved} of {len(self.heads)} values moved beyond both intervals; the largest change is"
            f" {best['site']} by {best['method']}: {best['a']:+.4g} to {best['b']:+.4g}."
        )


def _named(method: str, direction: str) -> str:
    return str(method) if direction == "none" else f"{method}, {direction}"


def difference(a: str | Path, b: str | Path, *, k: int = 10) -> Difference:
    """Two directories with `heads.parquet`, compared head by head where both have a method and direction."""
    import pandas

    both = pandas.merge(read_rows(a), read_rows(b), on=KEY, suffixes=("_a", "_b"))
    if both.empty:
        raise InterpError(f"{a} and {b} have no head and method in common, so they cannot be compared.")
    change = both["estimate_b"] - both["estimate_a"]
    apart = (both["low_b"] > both["high_a"]) | (both["high_b"] < both["low_a"])
    heads = pandas.DataFrame(
        {**{name: both[name] for name in KEY}, "a": both["estimate_a"], "b": both["estimate_b"], "change": change,
         "rank_a": both["rank_a"], "rank_b": both["rank_b"], "moved": apart}
    )  # fmt: skip
    order = heads.assign(size=change.abs(), front=~apart).sort_values(
        ["front", "size"], ascending=[True, False], kind="stable"
    )
    groups: Any = heads.groupby(KEY[:2], sort=False)
    rows = [_method(name, direction, mine, k) for (name, direction), mine in groups]
    return Difference(str(a), str(b), pandas.DataFrame(rows), order[heads.columns].reset_index(drop=True))


def _method(name: str, direction: str, mine: Any, k: int) -> dict[str, Any]:
    first, second = (torch.tensor(mine[side].to_numpy(), dtype=torch.float64) for side in ("a", "b"))
    return {"method": name, "direction": direction, "heads": len(mine), "k": min(k, len(mine)),
            **_alike(first, second, min(k, len(mine))), "moved": int(mine["moved"].sum())}  # fmt: skip


def _alike(a: torch.Tensor, b: torch.Tensor, k: int) -> dict[str, float | None]:
    """Spearman's correlation and the overlap of the first k by magnitude."""
    same = torch.ones(len(a), dtype=torch.float64)
    first, second = (set(one.abs().nan_to_num().topk(k).indices.tolist()) for one in (a, b))
    return {"spearman": pearson(ranks(a, same), ranks(b, same), same), "overlap": len(first & second) / k}
