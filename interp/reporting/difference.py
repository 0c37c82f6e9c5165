"""What changed between two reports: how far each method's ranks agree, and which heads moved beyond their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.attribution.verify import pearson, ranks
from interp.heads.rows import read_rows
from interp.kernels.errors import InterpError

KEY = ["method", "direction", "tower", "site"]


@dataclass(frozen=True, eq=False)
class Difference:
    """`methods`: Spearman and overlap of the first k; `heads`: both values of every head, the largest change first."""

    a: str
    b: str
    methods: Any
    heads: Any

    def __repr__(self) -> str:
        moved = int(self.heads["moved"].sum())
        if not moved:
            return f"No head moved beyond its intervals between {self.a} and {self.b}."
        best = self.heads.iloc[0]
        return (
            f"{moved} of {len(self.heads)} values moved beyond both intervals; the largest change is"
            f" {best['site']} by {best['method']}: {best['a']:+.4g} to {best['b']:+.4g}."
        )


def difference(a: str | Path, b: str | Path, *, k: int = 10) -> Difference:
    """Two directories with `heads.parquet`, compared head by head where both have a method and direction."""
    import pandas

    both = pandas.merge(read_rows(a), read_rows(b), on=KEY, suffixes=("_a", "_b"))
    if both.empty:
        raise InterpError(f"{a} and {b} have no head and method in common, so there is nothing to compare.")
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
