"""Where cross-attention looks, for the page: an example is the decoder's tokens followed by what they look at.

Rows are the first, keys the second, each by its word, its patch or, of sound, its time. Keys that are padding are left
out even where the model gives them weight; the example says so. Long sources keep the heaviest keys of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.explorer.looks import example, pattern_of, spread
from interp.hooks.anatomy.towers import Tower
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import key_columns, tower_inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model

KEYS = 8
"""Keys of each row of a long source."""
INDEX = 5
"""Bytes of one such key: its weight and its number."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """A tower's cross-attention layers, with the positions of their rows and of their keys."""

    tower: Tower
    rows: Inputs
    keys: Inputs
    columns: Tensor
    """Which of the looked-at tower's positions are keys."""

    def real(self, row: int) -> Tensor:
        """Which keys of a row are no padding."""
        return self.keys.valid[row, self.columns].cpu()

    def places(self, row: int) -> dict[int, int]:
        """Which of an example's tokens each position of the looked-at tower is."""
        after, keys = int(self.rows.valid[row].sum()), self.columns.cpu()[self.real(row)].tolist()
        return {column: after + n for n, column in enumerate(keys)}

    @property
    def heads(self) -> int:
        """How many heads there are."""
        return sum(layer.heads for layer in self.tower.layers if layer.kind == "cross")


def crossings(model: Model, x: Inputs) -> tuple[list[Crossed], list[str]]:
    """Cross-attention that can be looked at, and words about what cannot."""
    found, said = [], []
    for tower in model.ready().towers.values():
        layers = [layer for layer in tower.layers if layer.kind == "cross"]
        if not layers:
            continue
        name = spelled(model.anatomy, tower)
        try:
            rows, keys = (tower_inputs(x, Site(name, layers[0].index, c), cross=True) for c in ("z", "k"))
            columns = key_columns(x, Site(name, layers[0].index, "k"))
        except InputsError as reason:
            said.append(f"{tower.name}: where cross-attention looks is not shown: {reason}")
            continue
        if not all(layer.seen for layer in layers):
            said.append(
                f"{tower.name}: where cross-attention looks is not shown, since interp does not see this attention."
            )
        elif rows.batch != keys.batch:
            said.append(
                f"{tower.name}: where cross-attention looks is not shown: its keys have another number of rows."
            )
        else:
            found.append(Crossed(tower, rows, keys, columns))
    return found, said


def crossed_example(one: Crossed, row: int) -> dict[str, Any]:
    """The real tokens of a row and then the real positions they look at."""
    name = f"example {row}, {one.tower.name} cross-attention" if one.tower.name != "cross" else f"example {row}, cross"
    first, second = example(one.rows, row, name), example(one.keys, row, name)
    found = {"name": name, "tokens": first["tokens"] + second["tokens"], "roles": first["roles"] + second["roles"]}
    filling = int((~one.real(row)).sum())
    if not filling:
        return found
    return {**found, "note": f"{filling} keys that are padding are left out; the model may give them weight."}


def crossed_patterns(model: Model, x: Inputs, one: Crossed, rows: range, room: int) -> list[dict[str, Any]]:
    """A block of each row's patterns, `example` counting from 0; `room` bytes in all."""
    sizes = [int(one.rows.valid[row].sum()) * int(one.keys.valid[row].sum()) for row in rows]
    if one.heads * sum(sizes) <= room:
        return _whole(model, x, one, rows)
    count = max(1, room // (one.heads * len(rows) * KEYS * INDEX))
    return _largest(model, x, one, rows, count)


def _sites(model: Model, one: Crossed) -> list[str]:
    name = spelled(model.anatomy, one.tower)
    layers = [layer for layer in one.tower.layers if layer.kind == "cross"]
    return [head_name(name, layer.index, head) for layer in layers for head in range(layer.heads)]


def _whole(model: Model, x: Inputs, one: Crossed, rows: range) -> list[dict[str, Any]]:
    name = f"{pattern_of(model, one.tower, kind='cross')}.pattern"
    tape = model.run(x, record=name, store="cpu")
    recorded = [tape[site] for site in model.sites(name)]
    blocks = []
    for n, row in enumerate(rows):
        at, keys = (real.nonzero().flatten().cpu() for real in (one.rows.valid[row], one.real(row)))
        _fits(recorded[0].shape[3], one)
        weights = torch.cat([layer[row][:, at][:, :, keys].float() for layer in recorded])
        places = {"rows": list(range(len(at))), "keys": list(range(len(at), len(at) + len(keys)))}
        blocks.append({"example": n, "sites": _sites(model, one), "weights": weights.clamp(0, 1), **places})
    return blocks


def _largest(model: Model, x: Inputs, one: Crossed, rows: range, count: int) -> list[dict[str, Any]]:
    """The heaviest real keys of some query rows, the same columns in every example."""
    picked = spread(one.rows.valid, count)
    names = (f"topk:{KEYS}", f"topk:{KEYS}.keys")
    heads = pattern_of(model, one.tower, kind="cross")
    found = model.attention(x, stats=names[:1], heads=heads, rows=picked.tolist(), keys="real")
    mass = model.attention(x, stats=["mass:all"], heads=heads, rows=picked.tolist())
    blocks = []
    for n, row in enumerate(rows):
        place, after = _numbers(one.rows.valid[row]), int(one.rows.valid[row].sum())
        weights, keys = (torch.cat([layer[name][row].cpu() for layer in found.values.values()]) for name in names)
        real = torch.cat([layer["mass:all"][row].cpu() for layer in mass.values.values()])[..., None]
        weights = torch.where(keys < 0, 0.0, weights.float() * real.float()).clamp(0, 1)
        indices = after + _numbers(one.real(row))[keys.clamp(min=0)]
        block = {"example": n, "sites": _sites(model, one), "weights": weights, "indices": indices}
        blocks.append({**block, "rows": place[picked].tolist()})
    return blocks


def _numbers(valid: Tensor) -> Tensor:
    """From columns to the number among those that are real."""
    return (valid.int().cumsum(0).cpu() - 1).clamp(min=0)


def _fits(keys: int, one: Crossed) -> None:
    if keys != len(one.columns):
        raise InputsError(
            f"{one.tower.name}: cross-attention has {keys} keys, and the tower it looks at has {len(one.columns)}"
            " positions, so which is which is not known."
        )
