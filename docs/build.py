"""Makes `docs/methods.md` from the records of methods, `docs/calls.md` from docstrings, `docs/real-model.md` from the
numbers that the studies in `experiments/real/` kept, and `docs/model-types.md`, with one sentence of README.md, from
`interp doctor --all --json > experiments/zoo/model_types.jsonl`, and `docs/denoisers.md` from
`interp doctor --denoisers --json > experiments/zoo/denoisers.jsonl`.

python docs/build.py            # write them
python docs/build.py --check    # say whether they are up to date
"""

from __future__ import annotations

import inspect
import json
import re
import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import interp
from interp import records
from interp.commands import verdicts

DOCS = Path(__file__).parent
REAL = DOCS.parent / "experiments" / "real"
TYPES = DOCS.parent / "experiments" / "zoo" / "model_types.jsonl"
DENOISERS = TYPES.with_name("denoisers.jsonl")
README = DOCS.parent / "README.md"
MARKS = "<!-- interp doctor --all -->", "<!-- end -->"
"""Between these stands README's sentence about model types."""


def surface() -> dict[str, object]:
    """Every public name with what it is: those at the root, then each room's own."""
    names = {name: getattr(interp, name) for name in interp.__all__}
    rooms = [name for name, thing in names.items() if inspect.ismodule(thing)]
    seen = {id(thing) for thing in names.values()}
    for room in rooms:
        inside = {f"{room}.{name}": getattr(names[room], name) for name in names[room].__all__}
        names |= {name: thing for name, thing in inside.items() if id(thing) not in seen}
    return names


def methods() -> str:
    """A table of every method (what it asks, its papers, its cost and its limits), one of its numbers, and the choices
    of those that have some."""
    every = records.every()
    return "\n".join(
        [
            "# Methods", "", "Made from the records of methods and their files' docstrings by `docs/build.py`.", "",
            *_table(("call", "what it asks", "papers", "cost", "limits"), map(_asked, every)),
            "## What the numbers are", "",
            *_table(("call", "numbers", "shown as", "needs", "not for"), map(_numbered, every)),
            *(line for method in every for line in _choices(method)),
        ]
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", chr(92) + "|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _papers(record: records.Record) -> str:
    return ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in records.numbers_of(record))


def _asked(method: records.Method) -> Sequence[str]:
    said = records.asks(method), _papers(method), records.part(method, "Cost"), records.part(method, "Limits")
    return f"`{method.name}`", *said


def _numbered(method: records.Method) -> Sequence[str]:
    unfit = "; ".join(f"{kind}: {why}" for kind, why in method.unfit.items())
    return f"`{method.name}`", method.number, method.shown, ", ".join(method.needs), unfit


def _choices(method: records.Method) -> list[str]:
    """What an argument of the call may be."""
    found = list(records.variants(method.name).values())
    if not found:
        return []
    rows = [(f"`{one.name}`", one.number, _papers(one) if one.papers else "") for one in found]
    title = f"## `{method.name}({found[0].argument}=)`"
    return [title, "", *_table((found[0].argument, "numbers", "papers"), rows)]


def calls() -> str:
    """Every public name with its signature and docstring."""
    parts = ["# Calls", "", "Made from docstrings by `docs/build.py`.", ""]
    for name, thing in surface().items():
        title = f"interp.{name}{_signature(thing)}"
        parts += [f"## `interp.{name}`", "", "```text", title, "```", "", inspect.getdoc(thing) or "", ""]
    return "\n".join(parts)


def _signature(thing: object) -> str:
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, Exception)):
        return ""
    found = str(inspect.signature(thing)).replace("'", "")
    return re.sub(r"interp\.(?:\w+\.)*(\w+)", r"\1", found)


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
    made = f"Made by `docs/build.py` from `interp doctor --all --json`, transformers {sums['transformers']}."
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
            "Made by `docs/build.py` from `interp doctor --denoisers --json`; what the verdicts mean is said in"
            " [Model types](model-types.md).", "",
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
    return _table(
        (what, "verdict", "where its attention is seen", "why not all of it"),
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


PAGES = {
    "methods.md": methods, "calls.md": calls, "real-model.md": real_model, "model-types.md": model_types,
    "denoisers.md": denoisers,
    "../README.md": readme,
}  # fmt: skip


def main() -> int:
    stale = [name for name, make in PAGES.items() if _read(DOCS / name) != make()]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run python docs/build.py" if stale else "up to date")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
