"""Inputs as a table of tokens, for a terminal and for a notebook; long stretches of patches are folded."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.hooks.inputs import Inputs

Line = tuple[str, ...]
FOLD = 8
MOST = 2000


def lines(inputs: Inputs, row: int) -> Iterator[Line]:
    """(position, id, token, role) of every position of a row, patches folded to the first and last of a stretch."""
    ids = inputs.ids
    folded = [_fold(inputs, row, position) for position in range(inputs.length)]
    for position in range(inputs.length):
        if not folded[position]:
            token = repr(inputs.tokens[row][position]) if inputs.tokens else ""
            number = str(int(ids[row, position])) if ids is not None else ""
            yield str(position), number, token, inputs.roles.label(row, position)
        elif not folded[position - 1]:
            count = next(i for i, fold in enumerate([*folded[position:], False]) if not fold)
            yield "…", "", "", f"{count} more"


def _fold(inputs: Inputs, row: int, position: int) -> bool:
    """Whether the neighbours on both sides belong to the same stretch of a grid, or of padding."""
    near = range(position - FOLD // 2, position + FOLD // 2 + 1)
    if near[0] < 0 or near[-1] >= inputs.length:
        return False
    labels = inputs.roles
    same = {(int(labels.kind[row, i]), int(labels.tile[row, i])) for i in near}
    return len(same) == 1 and (int(labels.tile[row, position]) >= 0 or not bool(inputs.valid[row, position]))


def text(inputs: Inputs) -> str:
    """The table of every row, aligned."""
    parts = [repr(inputs)]
    for row in range(inputs.batch):
        body = [("pos", "id", "token", "role"), *lines(inputs, row)]
        widths = [max(len(line[column]) for line in body) for column in range(3)]
        parts.append(_title(inputs, row))
        for pos, number, token, role in body:
            parts.append(f"{pos:>{widths[0]}}  {number:>{widths[1]}}  {token:<{widths[2]}}  {role}".rstrip())
    return "\n".join(parts)


def _title(inputs: Inputs, row: int) -> str:
    start = inputs.continuation[row] if inputs.continuation else None
    tail = f", continuation from {start}" if start is not None else ""
    return f"row {row}: {int(inputs.valid[row].sum())} of {inputs.length} positions{tail}"


def html(inputs: Inputs) -> str:
    """The same as an HTML table; at most `MOST` lines, and it says so."""
    rows: list[str] = []
    total = 0
    for row in range(inputs.batch):
        body = list(lines(inputs, row))
        rows.append(f'<tr><th colspan="4" style="text-align:left">{escape(_title(inputs, row))}</th></tr>')
        rows += [_cells(line) for line in body[: max(0, MOST - total)]]
        total += len(body)
    more = f"<p>{total - MOST} more lines; show() prints them all.</p>" if total > MOST else ""
    head = "<tr><th>pos</th><th>id</th><th>token</th><th>role</th></tr>"
    return f"<table><caption>{escape(repr(inputs))}</caption>{head}{''.join(rows)}</table>{more}"


def _cells(line: Any) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
