"""Inputs as a table of tokens, for a terminal and for a notebook; long stretches of patches are folded."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator
from html import escape
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from interp.hooks.html import block, chips, folded, line
from interp.hooks.inputs.labels import Roles


@runtime_checkable
class Listed(Protocol):
    """What a table of inputs reads of them."""

    @property
    def ids(self) -> Tensor | None: ...
    @property
    def tokens(self) -> tuple[tuple[str, ...], ...] | None: ...
    @property
    def valid(self) -> Tensor: ...
    @property
    def roles(self) -> Roles: ...
    @property
    def continuation(self) -> tuple[int, ...] | None: ...
    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...


Line = tuple[str, ...]
FOLD = 8
SOUND = 1 << 30
"""Takes the place of a grid's number where positions are frames of sound."""
MOST = 2000
ROWS, CHIPS = 8, 400
"""Rows of a batch, and tokens of each, that are shown as chips."""


def lines(inputs: Listed, row: int) -> Iterator[Line]:
    """(position, id, token, role) of every position of a row, patches folded to the first and last of a stretch."""
    ids = [str(index) for index in inputs.ids[row].tolist()] if inputs.ids is not None else [""] * inputs.length
    tokens = [repr(token) for token in inputs.tokens[row]] if inputs.tokens else [""] * inputs.length
    folded = _folded(inputs, row)
    for position in range(inputs.length):
        if not folded[position]:
            yield str(position), ids[position], tokens[position], inputs.roles.label(row, position)
        elif not folded[position - 1]:
            count = next(i for i, fold in enumerate([*folded[position:], False]) if not fold)
            yield "…", "", "", f"{count} more"


def _folded(inputs: Listed, row: int) -> list[bool]:
    """Positions whose neighbours on both sides belong to the same grid, or are sound or padding too."""
    valid, sound = inputs.valid[row].tolist(), inputs.roles.where("audio")[row].cpu()
    tiles = inputs.roles.tile[row].cpu().masked_fill(sound, SOUND).tolist()
    stretch = [(tile, real) if tile >= 0 or not real else None for tile, real in zip(tiles, valid, strict=True)]
    half, out = FOLD // 2, [False] * len(tiles)
    for position in range(half, len(tiles) - half):
        near = set(stretch[position - half : position + half + 1])
        out[position] = len(near) == 1 and None not in near
    return out


def text(inputs: Listed) -> str:
    """The table of every row, aligned."""
    parts = [repr(inputs)]
    for row in range(inputs.batch):
        body = [("pos", "id", "token", "role"), *lines(inputs, row)]
        widths = [max(len(line[column]) for line in body) for column in range(3)]
        parts.append(_title(inputs, row))
        for pos, number, token, role in body:
            parts.append(f"{pos:>{widths[0]}}  {number:>{widths[1]}}  {token:<{widths[2]}}  {role}".rstrip())
    return "\n".join(parts)


def _title(inputs: Listed, row: int) -> str:
    start = inputs.continuation[row] if inputs.continuation else None
    tail = f", continuation from {start}" if start is not None else ""
    return f"row {row}: {int(inputs.valid[row].sum())} of {inputs.length} positions{tail}"


def html(inputs: Listed) -> str:
    """The tokens as chips that say position, id and role when pointed at, and below them the table to open."""
    parts = [line(repr(inputs))]
    for row in range(min(inputs.batch, ROWS)):
        marks = [(_chip(one), f"position {one[0]}, id {one[1] or 'none'}, {one[3]}") for one in lines(inputs, row)]
        parts += [line(_title(inputs, row), quiet=True), chips(marks[:CHIPS])]
        parts += [line(f"{len(marks) - CHIPS} more", quiet=True)] if len(marks) > CHIPS else []
    more = [line(f"{inputs.batch - ROWS} more rows", quiet=True)] if inputs.batch > ROWS else []
    return block(*parts, *more, folded("as a table", _table(inputs)))


def _chip(one: Line) -> str:
    """What a chip shows: the token, else the role or how many are folded here."""
    return literal_eval(one[2]) if one[2] else one[3]


def _table(inputs: Listed) -> str:
    """An HTML table of at most `MOST` lines, and it says so."""
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
