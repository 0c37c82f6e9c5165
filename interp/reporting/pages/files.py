"""The files of a report, written from what was gathered; the page goes last but one, `run.json` last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from interp.explorer.page import page
from interp.heads.rows import write_rows
from interp.reporting.pages import figures
from interp.reporting.pages.canvas import Canvas
from interp.reporting.pages.gathered import Gathered
from interp.reporting.pages.page import ABOUT, ablation_curve, faithfulness_curve, payload, shown_rows
from interp.reporting.pages.references import bibtex
from interp.reporting.pages.tables import card, latex
from interp.reporting.steps.steps import Steps

WHAT = {
    "report.html": "the report, one file that needs no network",
    "heads.csv": "one row per head and method",
    "heads.parquet": "the same, typed",
    "heads.tex": "the first heads as a table",
    "references.bib": "the papers behind the methods",
    "circuit.json": "the circuit, as EAP-IG and MIB write it",
    "run.json": "how it came about; the only file with times in it",
    "results": "per-example values of each method, read with interp.open",
    "figures": "the figures as SVG and PNG",
}
MOST_BARS = 20


def write_files(made: Gathered, steps: Steps) -> None:
    """All but run.json."""
    write_rows(made.rows, steps.folder)
    drawn = list(_figures(made))
    for name, canvas in drawn:
        steps.write(f"figures/{name}.svg", canvas.svg())
        steps.write(f"figures/{name}.png", canvas.png())
    if made.circuit:
        steps.write("figures/circuit.svg", made.circuit["svg"])
    methods = [*made.rows["method"].unique(), *(["circuit"] if made.circuit else [])]
    steps.write("references.bib", bibtex(methods))
    best = made.ranked
    what = f"Heads of {made.model}" + (f" on {made.task}" if made.task else "")
    steps.write("heads.tex", latex(best.to_dict("records"), f"{what}, by {_said(best)}."))
    there = {n: w for n, w in WHAT.items() if n == "report.html" or n == "run.json" or (steps.folder / n).exists()}
    facts = {"base_model": made.model, "library_name": "interp", "tags": ["interpretability", "attention-heads"],
             "datasets": [made.task] if made.task else []}  # fmt: skip
    steps.write("README.md", card(facts, made.finding, made.warnings, there))
    links = [n for n in there if n not in ("report.html", "results", "figures")]
    steps.write("report.html", page(payload(made, links)))


def _said(rows: Any) -> str:
    return f"{rows['method'].iloc[0]}, {rows['direction'].iloc[0]}" if len(rows) else "nothing"


def _figures(made: Gathered) -> Iterator[tuple[str, Canvas]]:
    rows = shown_rows(made)
    for (method, tower), mine in rows.groupby(["method", "tower"], sort=False):
        if mine["estimate"].notna().any() and (made.task == "" or method.partition(" (")[0] in ABOUT):
            name = f"map-{_file(method)}-{tower}"
            yield name, figures.head_map(mine.to_dict("records"), f"{method}, {tower}")
    best = made.ranked
    if len(best):
        yield "heads", figures.bars(best.head(MOST_BARS).to_dict("records"), f"The first heads, by {_said(best)}")
    if made.agreement:
        yield "agreement", figures.agreement_map(made.agreement, "Spearman correlation of methods")
    for one in made.ablations:
        yield f"ablation-{one['tower']}", _drawn(ablation_curve(one))
    if made.circuit:
        yield "faithfulness", _drawn(faithfulness_curve(made.circuit))


def _drawn(curve: Mapping[str, Any]) -> Canvas:
    return figures.curves(
        curve["lines"], curve["title"], x_title=curve["x_title"], y_title=curve["y_title"], levels=curve["levels"]
    )


def _file(method: str) -> str:
    """A method's name as a file's."""
    return "".join(letter if letter.isalnum() else "-" for letter in method.lower()).strip("-").replace("--", "-")


def write_run(steps: Steps, run: Mapping[str, Any]) -> None:
    """The record of the run, with its times."""
    steps.write("run.json", json.dumps(dict(run), indent=1, default=str))
