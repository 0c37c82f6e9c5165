"""Everything a report knows once its steps are done, and what it comes to in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.reporting.steps.steps import Answer

FEW = 8
"""Prompts below which intervals say little."""


@dataclass
class Gathered:
    """Plain values only, as they were read back from the steps."""

    title: str
    model: str
    task: str
    rows: Any
    """The table of `interp.heads.rows`."""
    about: Mapping[str, Any]
    checks: Answer = field(default_factory=dict)
    ablations: list[Answer] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    circuit: Answer | None = None
    patterns: Answer = field(default_factory=dict)
    weights: Answer = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    leaders: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    towers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ranked(self) -> Any:
        """The rows that heads are ranked by, the strongest first: exact denoising, else the first estimate, else the
        first method there is."""
        rows = self.rows
        for method, direction in (("patch", "denoise"), ("relp", "denoise"), ("atp", "denoise")):
            chosen = rows[(rows["method"] == method) & (rows["direction"] == direction)]
            others = rows[rows["method"].isin(["relp", "atp"])]
            if len(chosen) and (method != "patch" or len(chosen) >= others["site"].nunique()):
                return _by_size(chosen)
        return _by_size(rows[rows["method"] == rows["method"].iloc[0]]) if len(rows) else rows

    @property
    def gap(self) -> float | None:
        """The metric of clean beyond that of corrupt."""
        task = self.checks.get("task")
        return None if task is None else task["clean"] - task["corrupt"]

    @property
    def finding(self) -> str:
        """The report in a sentence or two."""
        rows = self.ranked
        if not len(rows):
            return "No head was scored."
        best = rows.iloc[0]
        if not abs(best["estimate"]) > max(0.0, best["noise_floor"]):
            return f"No head by itself has an effect by {best['method']}, {best['direction']}."
        share = "" if not self.gap else f", {best['estimate'] / self.gap:.0%} of the gap between clean and corrupt"
        said = f"{best['site']} has the largest effect by {best['method']}: {best['estimate']:+.3g}{share}"
        return f"{said}. {self._ablated()}".strip()

    def _ablated(self) -> str:
        if not self.ablations:
            return ""
        one = max(self.ablations, key=lambda a: max(r["share"] for r in a["rows"] if r["name"] == "found"))
        k = max(size for size in one["sizes"] if size <= FEW)
        shares = {row["name"]: row["share"] for row in one["rows"] if row["k"] == k}
        where = "held-out prompts" if one["split"] == "heldout" else "the same prompts"
        heads = f"the first {k} heads" if k > 1 else "that head"
        return (
            f"Without {heads} {where} lose {shares['found']:.0%} of it; without the {k} that write most"
            f" {shares['magnitude']:.0%}, without {k} random ones {shares['random']:.0%}."
        )

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing any of it."""
        made = [
            f"{line['name']}: no ({line['detail']})" for line in self.checks.get("lines", ()) if line["ok"] is False
        ]
        if self.checks and self.checks["split"] != "heldout":
            made.append(
                "This task has no held-out part: heads and circuit are judged on the prompts they were found on."
            )
        if len(self.rows) and 0 < int(self.rows["n"].max()) < FEW:
            made.append(f"At most {int(self.rows['n'].max())} prompt(s): intervals over prompts say little.")
        rows = self.ranked
        if len(rows) and not bool(rows["verified"].fillna(False).all()):
            done = int(rows["verified"].fillna(False).sum())
            made.append(f"Heads are ranked by estimates; {done} of {len(rows)} were checked by exact patching.")
        return made + self.refused


def _by_size(rows: Any) -> Any:
    return rows.reindex(rows["estimate"].abs().sort_values(ascending=False, kind="stable").index)
