"""Values as HTML for a notebook: a line, a table, tokens as chips. No script, nothing loaded, every string escaped.

Colours are the notebook's own (JupyterLab's variables) and those of the system elsewhere, so that both themes work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

MOST = 12
"""Rows of a table."""
LONG = 160
"""Characters of a cell."""
STYLE = (
    "color:var(--jp-ui-font-color1,inherit);font:13px/1.5 var(--jp-ui-font-family,system-ui,sans-serif);"
    "max-width:100%;overflow-x:auto"
)
CELL = "text-align:left;padding:2px 10px 2px 0;border-bottom:1px solid var(--jp-border-color2,#8886);vertical-align:top"
NUMBER = CELL.replace("left", "right")
CHIP = (
    "display:inline-block;border:1px solid var(--jp-border-color1,#8888);border-radius:3px;padding:0 4px;margin:1px;"
    "font-family:var(--jp-code-font-family,ui-monospace,monospace);white-space:pre-wrap"
)
QUIET = "color:var(--jp-ui-font-color2,inherit);opacity:0.85"


def block(*parts: str) -> str:
    """Parts of HTML as one."""
    return f'<div style="{STYLE}">{"".join(part for part in parts if part)}</div>'


def line(text: str, *, quiet: bool = False) -> str:
    """Text as it is, with its line breaks."""
    said = escape(text).replace("\n", "<br>")
    return f'<div style="{QUIET if quiet else ""}">{said}</div>'


def table(rows: Iterable[Mapping[str, Any]], *, of: int | None = None, most: int = MOST) -> str:
    """Rows of one kind; says how many more there are where it is told how many there are."""
    shown = [row for row, _ in zip(rows, range(most), strict=False)]
    if not shown:
        return line("no rows", quiet=True)
    names = list(shown[0])
    numeric = {name for name in names if all(_number(row[name]) for row in shown)}
    head = "".join(f'<th style="{NUMBER if name in numeric else CELL}">{escape(str(name))}</th>' for name in names)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{NUMBER if n in numeric else CELL}">{_cell(row[n])}</td>' for n in names)
        + "</tr>"
        for row in shown
    )
    more = "" if of is None or of <= len(shown) else line(f"{of - len(shown):,} more rows", quiet=True)
    return f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}'


def rows_of(value: Any) -> str:
    """The table of a value: its largest rows where it ranks them, else the first; nothing where it has no table."""
    if not hasattr(value, "to_frame"):
        return ""
    whole = value.to_frame()
    frame = value.top(MOST) if callable(getattr(value, "top", None)) else whole.head(MOST)
    return table(frame.to_dict("records"), of=len(whole) if len(frame) == MOST else None)


class Told:
    """A value that a notebook shows by what it says, and by its table where it has one."""

    def _repr_html_(self) -> str:
        return block(line(repr(self)), rows_of(self))


def chips(tokens: Sequence[tuple[str, str]]) -> str:
    """Tokens in a row, each with what is said when it is pointed at."""
    marks = (f'<span style="{CHIP}" title="{escape(said)}">{escape(_seen(text))}</span>' for text, said in tokens)
    return f"<div>{''.join(marks)}</div>"


def folded(summary: str, inside: str) -> str:
    """What is opened by a click."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _seen(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "\u00a0") or "∅"


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return escape(text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters)")
