"""Where heads look on real tokens: examples and patterns of a model's towers, small enough for a page.

Short inputs keep whole patterns; of long ones some rows are kept, evenly spaced with the last among them, and of each
row the keys with the most weight, which the kernels give without N x N. Rows that look at a picture keep all their
keys, since a map of the eight heaviest patches is no map; the first row (a class token) is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Tower
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name, numbers_of
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model

WHOLE = 96
"""Tokens up to which patterns are kept whole, where the page has room."""
ROOM = 1_500_000
"""Bytes of patterns of a page."""
ROWS, KEYS = 48, 8
"""Rows of a longer text, and keys of each."""
FEWEST, MOST = 2, 4
"""Examples of a page that does not say how many."""
PICTURED = 3
"""How much more room patterns of pictures have: a patch that is pointed at shows its row, so it has to be there."""
INDEX = 5
"""Bytes of one such key: its weight and its number."""


def stacks(model: Model, x: Inputs) -> tuple[list[tuple[Tower, Inputs]], list[str]]:
    """Towers whose self-attention can be looked at, with the positions they count, and words about the others."""
    found, said = [], []
    for tower in model.ready().towers.values():
        layers = [layer for layer in tower.layers if layer.kind == "self"]
        if not layers:
            continue
        if not all(layer.seen for layer in layers):
            said.append(
                f"{tower.name}: where it looks is not shown, since interp does not see the attention of this family."
            )
            continue
        try:
            found.append((tower, tower_inputs(x, Site(spelled(model.anatomy, tower), layers[0].index, "z"))))
        except InputsError as reason:
            said.append(f"{tower.name}: where it looks is not shown: {reason}")
    return found, said


def pattern_of(model: Model, tower: Tower, *, kind: str = "self") -> str:
    """The self-attention (or cross-attention) layers of a tower as a site pattern."""
    name = spelled(model.anatomy, tower)
    numbers = numbers_of(layer.index for layer in tower.layers if layer.kind == kind)
    return f"{name}.L{numbers}" if name else f"L{numbers}"


def example(x: Inputs, row: int, name: str) -> dict[str, Any]:
    """The real tokens of one row, patches by their place."""
    columns = x.valid[row].nonzero().flatten().tolist()
    tokens = [token(x, row, column) for column in columns]
    return {"name": name, "tokens": tokens, "roles": [x.roles.label(row, column) for column in columns]}


def token(x: Inputs, row: int, column: int) -> str:
    """What a position is called: a patch by its place, a frame of sound by its time, else its text."""
    labels = x.roles
    if bool(labels.patch[row, column]):
        return f"({int(labels.row[row, column])},{int(labels.col[row, column])})"
    return x.tokens[row][column] if x.tokens is not None else labels.label(row, column)


def patterns(
    model: Model, x: Inputs, tower: Tower, own: Inputs, rows: Sequence[int], room: int
) -> list[dict[str, Any]]:
    """Blocks of each row's patterns, `example` counting from 0; `room` bytes in all."""
    heads = sum(layer.heads for layer in tower.layers if layer.kind == "self")
    longest = int(own.valid[list(rows)].sum(1).max())
    if longest <= WHOLE and heads * len(rows) * longest**2 <= room:
        return _whole(model, x, tower, own, rows)
    if bool(own.roles.patch[list(rows)].any()):
        return _rows(model, x, tower, own, rows, min(longest, max(1, PICTURED * room // (heads * len(rows) * longest))))
    count = min(ROWS, max(1, room // (heads * len(rows) * KEYS * INDEX)))
    return _largest(model, x, tower, own, rows, count)


def fitting(tower: Tower, own: Inputs, room: int) -> int:
    """Of how many rows whole patterns have room, between the fewest and the most."""
    heads = sum(layer.heads for layer in tower.layers if layer.kind == "self")
    lengths = own.valid.sum(1).tolist()
    whole = (
        n for n in range(MOST, FEWEST, -1) if max(lengths[:n]) <= WHOLE and heads * n * max(lengths[:n]) ** 2 <= room
    )
    return next(whole, FEWEST)


def _sites(model: Model, tower: Tower) -> list[str]:
    layers = [layer for layer in tower.layers if layer.kind == "self"]
    name = spelled(model.anatomy, tower)
    return [head_name(name, layer.index, head) for layer in layers for head in range(layer.heads)]


def _whole(model: Model, x: Inputs, tower: Tower, own: Inputs, rows: Sequence[int]) -> list[dict[str, Any]]:
    name = f"{pattern_of(model, tower)}.pattern"
    tape = model.run(x, record=name, store="cpu")
    recorded = [tape[site] for site in model.sites(name)]
    blocks = []
    for n, row in enumerate(rows):
        columns = own.valid[row].nonzero().flatten().cpu()
        weights = torch.cat([layer[row][:, columns][:, :, columns].float() for layer in recorded])
        blocks.append({"example": n, "sites": _sites(model, tower), "weights": weights.clamp(0, 1)})
    return blocks


def _rows(model: Model, x: Inputs, tower: Tower, own: Inputs, rows: Sequence[int], count: int) -> list[dict[str, Any]]:
    """All keys of some query rows, the same columns in every example."""
    name = f"{pattern_of(model, tower)}.pattern"
    picked = spread(own.valid, count, first=True)
    tape = model.run(x, record=name, positions=picked.tolist(), store="cpu")
    recorded = [tape[site] for site in model.sites(name)]
    blocks = []
    for n, row in enumerate(rows):
        columns = own.valid[row].nonzero().flatten().cpu()
        weights = torch.cat([layer[row][:, :, columns].float() for layer in recorded])
        place = own.valid[row].int().cumsum(0).cpu() - 1
        blocks.append({"example": n, "sites": _sites(model, tower), "weights": weights.clamp(0, 1),
                       "rows": place[picked].tolist()})  # fmt: skip
    return blocks


def _largest(
    model: Model, x: Inputs, tower: Tower, own: Inputs, rows: Sequence[int], count: int
) -> list[dict[str, Any]]:
    """The heaviest keys of some query rows, the same columns in every example."""
    picked = spread(own.valid, count)
    names = (f"topk:{KEYS}", f"topk:{KEYS}.keys")
    found = model.attention(x, stats=names[:1], heads=pattern_of(model, tower), rows=picked.tolist())
    blocks = []
    for n, row in enumerate(rows):
        place = (own.valid[row].int().cumsum(0).cpu() - 1).clamp(min=0)  # from columns to the tokens that are real
        weights, keys = (torch.cat([layer[name][row].cpu() for layer in found.values.values()]) for name in names)
        weights = torch.where(keys < 0, 0.0, weights.float()).clamp(0, 1)
        block = {"example": n, "sites": _sites(model, tower), "weights": weights, "indices": place[keys.clamp(min=0)]}
        blocks.append({**block, "rows": place[picked].tolist()})
    return blocks


def spread(valid: Tensor, count: int, *, first: bool = False) -> Tensor:
    """Columns that are real in every row, evenly spaced, the last of them included; `first` puts the first before."""
    common = valid.all(0).nonzero().flatten().cpu()
    if not len(common):
        raise InputsError("these inputs have no column that is a token in each: show examples of more equal length.")
    found = common[torch.linspace(len(common) - 1, 0, min(count, len(common))).round().long().flip(0)]
    return torch.unique(torch.cat([common[:1], found])) if first else found
