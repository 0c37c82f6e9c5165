"""Everything a report knows once its steps are done, and what it comes to in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.reporting.steps.steps import Answer
from interp.results.effects import Effects

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
    answers: dict[str, Any] = field(default_factory=dict)
    """What each section found, by its name."""
    effects: dict[str, Effects] = field(default_factory=dict)
    """Scores of heads that can be compared with each other, "relp text"."""
    measures: dict[str, Effects] = field(default_factory=dict)
    """Other numbers of heads that are rows."""
    frames: list[Any] = field(default_factory=list)
    """Rows that are there already."""
    said: list[str] = field(default_factory=list)
    """Sentences of the finding, after the one about the first head."""
    labels: dict[str, str] = field(default_factory=dict)
    leaders: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    towers: list[dict[str, Any]] = field(default_factory=list)
    leading: list[str] = field(default_factory=lambda: ["relp", "atp"])
    """Estimates by how near they came to exact patching, the nearest first."""
    left_out: list[str] = field(default_factory=list)
    """What the budget left out, and what could not be judged."""
    pending: list[str] = field(default_factory=list)
    """What is still to be done, on a page that is not complete."""

    @property
    def ranked(self) -> Any:
        """The rows that heads are ranked by, the strongest first: exact denoising, else the leading estimate, else the
        first method there is."""
        rows = self.rows
        for method in ("patch", *self.leading):
            chosen = rows[(rows["method"] == method) & (rows["direction"] == "denoise")]
            others = rows[rows["method"].isin(self.leading)]
            if len(chosen) and (method != "patch" or len(chosen) >= others["site"].nunique()):
                return _by_size(chosen)
        return _by_size(rows[rows["method"] == rows["method"].iloc[0]]) if len(rows) else rows

    def keep(self, name: str, answer: Answer) -> None:
        """A section's answer, or why there is none."""
        if "refused" in answer:
            self.refused.append(str(answer["refused"]))
        else:
            self.answers[name] = answer

    @property
    def checks(self) -> Answer:
        """What was found before any number."""
        found: Answer = self.answers.get("checks", {})
        return found

    @property
    def gap(self) -> float | None:
        """The metric of clean beyond that of corrupt, where it is distinguished from 0."""
        task = self.checks.get("task")
        return None if task is None or self.checks.get("doubt") else task["gap"]

    @property
    def finding(self) -> str:
        """The report in a sentence or two."""
        return " ".join(part for part in (self.checks.get("doubt", ""), self._found()) if part)

    def _found(self) -> str:
        """The first head, and what sections say."""
        rows = self.ranked
        if not len(rows):
            return "No head was scored."
        best = rows.iloc[0]
        if not abs(best["estimate"]) > max(0.0, best["noise_floor"]):
            return f"No single head has an effect by {best['method']}, {best['direction']}."
        share = "" if not self.gap else f", {best['estimate'] / self.gap:.0%} of the gap between clean and corrupt"
        said = f"{best['site']} has the largest effect by {best['method']}: {best['estimate']:+.3g}{share}."
        return " ".join([said, *self.said])

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing any of it."""
        made = [f"This page is not complete. Still to come: {', '.join(self.pending)}."] if self.pending else []
        made += [
            f"{line['name']}: no ({line['detail']})" for line in self.checks.get("lines", ()) if line["ok"] is False
        ]
        if self.checks and self.checks["split"] != "heldout":
            made.append(
                "This task has no held-out part: heads and circuit are judged on the prompts they were found on."
            )
        rows = self.ranked
        if len(rows) and 0 < int(rows["n"].max()) < FEW:
            made.append(f"At most {int(rows['n'].max())} prompt(s): intervals over prompts say little.")
        if len(rows) and not bool(rows["verified"].fillna(False).all()):
            done = int(rows["verified"].fillna(False).sum())
            made.append(f"Heads are ranked by estimates; {done} of {len(rows)} were checked by exact patching.")
        return made + self.left_out + self.refused


def _by_size(rows: Any) -> Any:
    return rows.reindex(rows["estimate"].abs().sort_values(ascending=False, kind="stable").index)
