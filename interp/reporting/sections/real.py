"""Is the circuit real: the tables of verdicts that a report was given (`interp.circuits.judge`).

A verdict takes hundreds of passes, so a report makes none unless you give one. Cost: no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section

SAID = {True: "yes", False: "no", None: ""}


def _page(made: Gathered) -> Mapping[str, Any]:
    verdicts = made.answers.get("real", {}).get("verdicts", ())
    return {"tables": [_table(one) for one in verdicts]} if verdicts else {}


def _table(verdict: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{**line, "holds": SAID[line["holds"]]} for line in verdict["lines"]]
    task = verdict["meta"].get("task", "")
    return {"title": f"Is the circuit real? {task}", "about": verdict["said"], "rows": rows}


def _close(made: Gathered, seed: int) -> None:
    made.said += [one["said"] for one in made.answers.get("real", {}).get("verdicts", ())]


SECTION = Section(
    "real", 55, close=_close, page=_page,
    cites=lambda made: ("interp.circuits.judge",) if "real" in made.answers else (),
)  # fmt: skip
