"""The files of a report, written from what was gathered; the page goes last but one, `run.json` last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from interp.explorer.page import page
from interp.heads.rows import write_rows
from interp.papers import bibtex
from interp.reporting.drawing import figures
from interp.reporting.drawing.tables import ROWS, card, latex
from interp.reporting.pages.lead import lead
from interp.reporting.pages.page import described, payload, shown_rows
from interp.reporting.pages.paragraph import called, cited, paragraph
from interp.reporting.sections import sections
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.steps import Steps
from interp.results.figures.figure import Figure

WHAT = {
    "report.html": "the report, one file that needs no network",
    "heads.csv": "one row per head and method",
    "heads.parquet": "the same, typed",
    "heads.tex": "the first heads as a table",
    "references.bib": "the papers behind the methods",
    "methods.tex": "a paragraph of methods that cites them",
    "run.json": "how the report was made; the only file with times in it",
    "results": "per-example values of each method, read with interp.open",
    "figures": "the figures as SVG and PNG",
}
MOST_BARS = 20


def write_files(made: Gathered, steps: Steps) -> None:
    """All but run.json."""
    write_rows(made.rows, steps.folder)
    for name, drawing in [*_figures(made), *(pair for section in sections() for pair in section.figures(made))]:
        if isinstance(drawing, Figure):
            steps.write(f"figures/{name}.png", drawing.png())
        steps.write(f"figures/{name}.svg", drawing.svg() if isinstance(drawing, Figure) else drawing)
    steps.write("references.bib", bibtex(cited(made)))
    steps.write("methods.tex", paragraph(made, tex=True) + "\n")
    best = made.ranked
    steps.write("heads.tex", latex(best.to_dict("records"), _caption(made)))
    what_is = WHAT | {name: what for section in sections() for name, what in section.writes.items()}
    there = {n: w for n, w in what_is.items() if n == "report.html" or n == "run.json" or (steps.folder / n).exists()}
    facts = {"base_model": made.model, "library_name": "interp", "tags": ["interpretability", "attention-heads"],
             "datasets": [made.task] if made.task else []}  # fmt: skip
    steps.write("README.md", card(facts, made.finding, made.warnings, there))
    links = [n for n in there if n not in ("report.html", "results", "figures")]
    write_page(made, steps, links)


def write_page(made: Gathered, steps: Steps, links: list[str]) -> None:
    """The page of what is known; `links` are files next to it."""
    shown = payload(made, links) | {"lead": lead(made, paragraph(made, tex=False))}
    steps.write("report.html", page(shown))


def _caption(made: Gathered) -> str:
    """What the table shows, so that it can be read without the others."""
    rows = made.ranked
    what = f"Heads of {called(made)}" + (f" on {made.task}" if made.task else "")
    if not len(rows):
        return f"{what}: none was scored."
    first, n = rows.iloc[0], int(rows["n"].max())
    many = f"the first {min(ROWS, len(rows))} of {len(rows)}" if len(rows) > ROWS else f"all {len(rows)}"
    spread = f"; low and high are the 95% bootstrap interval over {n} prompts" if n > 1 else ""
    return f"{what}: {many} by {_said(rows)}. Effects are on {first['metric']}{spread}."


def _said(rows: Any) -> str:
    return f"{rows['method'].iloc[0]}, {rows['direction'].iloc[0]}" if len(rows) else "nothing"


def _figures(made: Gathered) -> Iterator[tuple[str, Figure]]:
    rows = shown_rows(made)
    for (method, tower), mine in rows.groupby(["method", "tower"], sort=False):
        said = described(method.partition(" (")[0])
        if mine["estimate"].notna().any() and (made.task == "" or (said is not None and said.drawn)):
            name = f"map-{_file(method)}-{tower}"
            yield name, figures.head_map(mine.to_dict("records"), f"{method}, {tower}")
    best = made.ranked
    if len(best):
        yield "heads", figures.bars(best.head(MOST_BARS).to_dict("records"), f"The first heads, by {_said(best)}")


def _file(method: str) -> str:
    """A method's name as a file's."""
    return "".join(letter if letter.isalnum() else "-" for letter in method.lower()).strip("-").replace("--", "-")


def write_run(steps: Steps, run: Mapping[str, Any]) -> None:
    """The record of the run, with its times."""
    steps.write("run.json", json.dumps(dict(run), indent=1, default=str))
