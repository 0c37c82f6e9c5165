"""Pages and a sentence of README.md made from what studies and `interp doctor` kept in files."""

from __future__ import annotations

import inspect
import json
import string
from pathlib import Path
from typing import Any

from made.words import table

from interp.commands import verdicts

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY / "experiments" / "real"
TYPES = REPOSITORY / "experiments" / "zoo" / "model_types.jsonl"
DENOISERS = TYPES.with_name("denoisers.jsonl")
README = REPOSITORY / "README.md"
MARKS = "<!-- interp doctor --all -->", "<!-- end -->"
"""Between these stands README's sentence about model types."""


class Numbers(string.Formatter):
    """Fills a page with kept numbers: `{smollm2[ioi][gap]:.2f}`; heads by name and lists are written out in a row."""

    def format_field(self, value: object, spec: str) -> str:
        if isinstance(value, dict):
            marked = {f"{name}:" if name.isdigit() else name: one for name, one in value.items()}
            return ", ".join(f"{name} {self.format_field(one, spec)}" for name, one in marked.items())
        if isinstance(value, list):
            return ", ".join(self.format_field(one, spec) for one in value)
        return format(value, spec if isinstance(value, (int, float)) else "")


def real_model() -> str:
    """The page of the studies on real models, its numbers from the files that they kept."""
    kept = {folder.name: {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
            for folder in (REAL / "results").iterdir()}  # fmt: skip
    return Numbers().format((REAL / "page.md").read_text(), **kept)


def model_types() -> str:
    """What holds of each model type of transformers, with the reason where not all does."""
    rows, sums = _kept(TYPES)
    made = (
        "This page is made by `docs/build.py` from `interp doctor --all --json`, with transformers"
        f" {sums['transformers']}. It lists every model type of transformers."
    )
    return "\n".join(
        [
            "# Model types", "", made, "",
            "```text", inspect.getdoc(verdicts) or "", "```", "",
            f"{sums['types']} types: {_counts(sums)}. {_share(sums)}", "",
            *_verdicts("model type", rows, sums),
        ]
    )  # fmt: skip


def denoisers() -> str:
    """The same of each class of diffusers that denoises."""
    rows, sums = _kept(DENOISERS)
    return "\n".join(
        [
            "# Denoisers", "",
            "This page is made by `docs/build.py` from `interp doctor --denoisers --json`. It lists each class of"
            " diffusers that denoises. [Model types](model-types.md) says what the verdicts mean.", "",
            f"{sums['types']} classes: {_counts(sums)}.", "",
            *_verdicts("class", rows, sums),
        ]
    )  # fmt: skip


def _counts(sums: dict[str, Any]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sums["totals"].items())


def _verdicts(what: str, rows: list[dict[str, Any]], sums: dict[str, Any]) -> list[str]:
    """A row a type, the most frequent verdict first."""
    order = list(sums["totals"])
    rows.sort(key=lambda row: (order.index(row["verdict"]), row["model_type"]))
    return table(
        (what, "verdict", "where interp reads its attention", "reason"),
        [(f"`{row['model_type']}`", row["verdict"], ", ".join(row["standpoints"]), row["why"]) for row in rows],
    )


def _kept(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rows, sums = map(json.loads, path.read_text().splitlines())
    return rows, sums


def _share(sums: dict[str, Any]) -> str:
    return (
        f"Of the {sums['judged']} types that have heads and could be built, {sums['totals']['pass']}"
        f" ({sums['totals']['pass'] / sums['judged']:.0%}) pass everything, and {sums['totals'].get('wrong', 0)} gave a"
        " wrong number."
    )


def readme() -> str:
    """README.md with its sentence about model types."""
    before, start, rest = README.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not start or not end:
        raise ValueError(f"README.md has no place between {MARKS[0]} and {MARKS[1]}.")
    return f"{before}{start}\n  {_share(_kept(TYPES)[1])}\n  {end}{after}"
