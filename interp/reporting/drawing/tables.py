"""The table of a report for a paper, and the card in the same directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
ROWS = 20
BREAKS = "\x7f\x85\u2028\u2029\ufeff"
"""What ends a line in YAML or is not allowed there, and has no meaning in JSON."""


def tex_escaped(text: str) -> str:
    """Text on one line, unchanged, in LaTeX."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def latex(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """The first heads between the rules of booktabs, digits aligned by siunitx, with a caption to keep."""
    columns = [_digits([row[name] for row in rows[:ROWS]]) for name in NUMBERS]
    wide = " ".join(f"S[table-format={form}]" for form, _ in columns)
    lines = [
        r"% \usepackage{booktabs,siunitx}", r"\begin{table}", r"\centering", rf"\caption{{{tex_escaped(caption)}}}",
        r"\label{tab:heads}", rf"\begin{{tabular}}{{l {wide} l}}", r"\toprule",
        r"head & {effect} & {low} & {high} & {exact} & label \\", r"\midrule",
    ]  # fmt: skip
    for n, row in enumerate(rows[:ROWS]):
        numbers = " & ".join(cells[n] for _, cells in columns)
        lines.append(rf"{tex_escaped(str(row['site']))} & {numbers} & {tex_escaped(str(row['label']))} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


NUMBERS = ("estimate", "low", "high", "exact")
MOST_PLACES = 5


def _digits(values: Sequence[float]) -> tuple[str, list[str]]:
    """The format of a column and its cells, all with the places that the largest number needs for three digits."""
    known = [abs(value) for value in values if math.isfinite(value)]
    largest = max(known, default=0.0)
    left = max(1, len(str(int(largest))))
    small = 0 if largest >= 1 or not largest else -math.floor(math.log10(largest)) - 1
    places = min(MOST_PLACES, 3 + small) if 0 < largest < 1 else max(0, 3 - left)
    cells = [f"{round(value, places) + 0.0:.{places}f}" if math.isfinite(value) else "{--}" for value in values]
    return f"{'-' if any(cell.startswith('-') for cell in cells) else ''}{left}.{places}", cells


def card(facts: Mapping[str, Any], finding: str, warnings: Sequence[str], files: Mapping[str, str]) -> str:
    """A README in the layout of the hub: a head that machines read, then words."""
    head = "\n".join(f"{key}: {_yaml(value)}" for key, value in facts.items())
    listed = "\n".join(f"- `{name}`: {_line(what)}" for name, what in files.items())
    said = "".join(f"- {_line(warning)}\n" for warning in warnings)
    limits = f"\n## Read with care\n\n{said}" if said else ""
    return f"---\n{head}\n---\n\n# Heads of {_line(str(facts['base_model']))}\n\n{_line(finding)}\n\n{listed}\n{limits}"


def _line(text: str) -> str:
    return escape(" ".join(text.split()), quote=False)


def _yaml(value: Any) -> str:
    """A string in double quotes or a list of them, which YAML reads as JSON."""
    said = json.dumps(value, ensure_ascii=False)
    return "".join(rf"\u{ord(c):04x}" if c in BREAKS else c for c in said)
