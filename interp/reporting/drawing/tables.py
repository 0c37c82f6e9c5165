"""The table of a report for a paper, and the card that lies beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
ROWS = 20
BREAKS = "\x7f\x85\u2028\u2029\ufeff"
"""What ends a line for YAML, or may not stand in it, and is nothing special to JSON."""


def tex_escaped(text: str) -> str:
    """Text on one line as it stands, in LaTeX."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def latex(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """The first heads as a table that needs no package."""
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{tex_escaped(caption)}}}", r"\begin{tabular}{lrrrrl}", r"\hline",
        r"head & effect & low & high & exact & label \\", r"\hline",
    ]  # fmt: skip
    for row in rows[:ROWS]:
        numbers = " & ".join(_number(row[name]) for name in ("estimate", "low", "high", "exact"))
        lines.append(rf"{tex_escaped(str(row['site']))} & {numbers} & {tex_escaped(str(row['label']))} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}", ""])


def _number(value: float | int) -> str:
    return f"${value:.3g}$" if value == value else "--"


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
