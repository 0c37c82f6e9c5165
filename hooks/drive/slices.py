"""What goes through one block at a time: the active rows of a sweep, token after token, and what they change there.

Rows with the same suffix form a group, its hidden states in one buffer. A slice is some rows of the groups in one call
of one block, [1, token, d]; it stands at the block's attention and at its ports, and puts each row's changes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.drive.packed import Rectangle, Shared, attend
from interp.hooks.drive.recording import Block, Recording
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.ports import head_results

CALLED = ("q", "k", "v", "z")
TOKENS = 2048
"""Tokens that go through a block at a time."""


@dataclass(frozen=True, eq=False)
class Change:
    """New values at one component of one layer: `values` [prompt, column, ...] at the columns where `where` is true."""

    layer: int
    component: str
    values: Tensor
    where: Tensor
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One changed version of one prompt; `number` says which question it answers."""

    number: int
    prompt: int
    changes: tuple[Change, ...] = ()
    start: int = 0
    layer: int = 0
    tower: str | None = None


@dataclass(eq=False)
class Group:
    """The active rows with the same suffix, their hidden states in one buffer that fills as rows join."""

    start: int
    end: int
    rows: list[Row]
    hidden: Tensor
    active: int = 0

    @property
    def beat(self) -> int:
        """How many prompts there are: after as many rows they mostly come again in the same order."""
        return len({row.prompt for row in self.rows})


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one group's rows within a slice."""

    group: Group
    low: int
    high: int
    at: int

    @property
    def prompts(self) -> Tensor:
        return torch.tensor([row.prompt for row in self.group.rows[self.low : self.high]])


class Enough(Exception):
    """The attention has what it needs; the rest of the block would be thrown away."""


@dataclass(eq=False)
class Slice(Tap):
    """What one call of one block works on; a tap at its attention."""

    block: Block
    pieces: Sequence[Piece]
    columns: Tensor | None = None
    """Only these columns are queries (in the last layer); keys and values were taken before."""
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    harvest: bool = False
    changes: dict[str, list[tuple[Change, Row, Tensor, int]]] = field(default_factory=dict)
    """By component, what this layer's rows change: the columns of their tokens, and where in the slice they begin."""
    out: nn.Module | None = None
    """The output projection, where results of heads are changed."""
    added: Tensor | None = None

    def __post_init__(self) -> None:
        for piece in self.pieces:
            columns = torch.arange(piece.group.start, piece.group.end) if self.columns is None else self.columns
            for n, row in enumerate(piece.group.rows[piece.low : piece.high]):
                for change in row.changes:
                    if change.layer == self.block.layer.index:
                        at = piece.at + n * len(columns)
                        self.changes.setdefault(change.component, []).append((change, row, columns, at))

    def before(self, call: Call) -> None:
        for name in ("q", "k", "v"):
            value = getattr(call, name).transpose(1, 2)
            setattr(call, name, self.write(name, value).transpose(1, 2))

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        rectangles = [self._rectangle(piece) for piece in self.pieces]
        if self.columns is None:
            self.own = [(self._rows_of(call.k, r), self._rows_of(call.v, r)) for r in rectangles]
        if self.harvest:
            raise Enough
        k, v = zip(*self.own, strict=True)
        call.z = attend(call.q, k, v, rectangles, self.block.shared)

    def after(self, call: Call) -> None:
        call.z = self.write("z", call.z)
        if "result" in self.changes:
            self.added = self._writes(call.z)

    def attended(self, x: Tensor) -> Tensor:
        """The attention's output [1, token, d] with what changed results add to it, then with what replaces it."""
        return self.write("attn_out", x if self.added is None else x + self.added)

    def _rectangle(self, piece: Piece) -> Rectangle:
        return Rectangle(piece.at, piece.group.start, piece.group.end, piece.prompts, self.columns)

    @staticmethod
    def _rows_of(x: Tensor, r: Rectangle) -> Tensor:
        return x[0, :, r.at : r.at + r.tokens].unflatten(1, (r.rows, -1)).transpose(0, 1)

    def writer(self, component: str) -> Callable[[Tensor], Tensor] | None:
        """What happens at the port of a component, if anything does."""
        if component == "attn_out" and not {"attn_out", "result"}.isdisjoint(self.changes):
            return self.attended
        if component not in self.changes or component in (*CALLED, "resid_pre", "resid_post"):
            return None
        return partial(self.write, component)

    def write(self, component: str, x: Tensor) -> Tensor:
        """x [1, token, ...] with the changes of this layer's rows written into it."""
        if component not in self.changes:
            return x
        result = x.clone()
        for change, row, columns, at in self.changes[component]:
            self.put(result, change, row, columns, at)
        return result

    def _writes(self, z: Tensor) -> Tensor:
        """What the changed results add to the attention's output [1, token, d]: the new results less those of z."""
        layer = self.block.layer
        added = z.new_zeros(1, z.shape[1], self.block.entered.shape[-1])
        for change, row, columns, at in self.changes["result"]:
            hit = change.where[row.prompt, columns].nonzero().flatten()
            heads = change.heads or tuple(range(layer.heads))
            new = change.values[row.prompt, columns[hit]][:, list(heads)].to(z)
            assert self.out is not None
            added[0, at + hit] += (new - head_results(self.out, z[:, at + hit], heads)[0]).sum(1)
        return added

    @staticmethod
    def put(x: Tensor, change: Change, row: Row, columns: Tensor, at: int) -> None:
        hit = change.where[row.prompt, columns].nonzero().flatten()
        values = change.values[row.prompt, columns[hit]].to(x)
        if change.units is not None:
            units = torch.tensor(change.units)
            x[0, (at + hit)[:, None], units] = values[:, units]
        elif change.heads is None:
            x[0, at + hit] = values
        else:
            heads = torch.tensor(change.heads)
            x[0, (at + hit)[:, None], heads] = values[:, heads]


@dataclass(eq=False)
class CrossingTap(Tap):
    """At a block's attention to another tower: every row sees all of its prompt's keys there, as recorded."""

    slice: Slice
    shared: Shared

    def before(self, call: Call) -> None:
        call.q = self.slice.write("cross.q", call.q.transpose(1, 2)).transpose(1, 2)

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        keys = self.shared.k.shape[2]
        rectangles = []
        for piece in self.slice.pieces:
            columns = self.slice.columns
            columns = torch.arange(piece.group.start, piece.group.end) if columns is None else columns
            rectangles.append(Rectangle(piece.at, keys, keys, piece.prompts, columns))
        none = [self.shared.k[:1, :, :0].expand(r.rows, -1, -1, -1) for r in rectangles]
        also = [self.shared.v[:1, :, :0].expand(r.rows, -1, -1, -1) for r in rectangles]
        call.z = attend(call.q, none, also, rectangles, self.shared)

    def after(self, call: Call) -> None:
        call.z = self.slice.write("cross.z", call.z)


def slices(groups: Sequence[Group]) -> Iterator[list[Piece]]:
    """The active rows of all groups in runs of about `TOKENS` tokens."""
    pieces: list[Piece] = []
    at = 0
    for group in groups:
        width, beat, low = group.end - group.start, group.beat, 0
        while low < group.active:
            rows = min(group.active - low, _whole((TOKENS - at) // width, beat))
            pieces.append(Piece(group, low, low + rows, at))
            at, low = at + rows * width, low + rows
            if at + width > TOKENS:
                yield pieces
                pieces, at = [], 0
    if pieces:
        yield pieces


def _whole(rows: int, beat: int) -> int:
    """As many rows, or a few less so that every prompt has as many of them."""
    return max(1, rows // beat * beat or rows)


def narrowed(pieces: Sequence[Piece], columns: Tensor) -> list[Piece]:
    """The same rows where each has only these columns."""
    found, at = [], 0
    for p in pieces:
        found.append(Piece(p.group, p.low, p.high, at))
        at += (p.high - p.low) * len(columns)
    return found


def joined(pieces: Sequence[Piece]) -> Tensor:
    return torch.cat([p.group.hidden[p.low : p.high].flatten(0, 1) for p in pieces])[None]


def whereabouts(slice_: Slice) -> tuple[Tensor, Tensor]:
    """Prompt and column of every token of a slice."""
    prompts, columns = [], []
    for p in slice_.pieces:
        own = torch.arange(p.group.start, p.group.end) if slice_.columns is None else slice_.columns
        prompts.append(p.prompts.repeat_interleave(len(own)))
        columns.append(own.repeat(p.high - p.low))
    return torch.cat(prompts), torch.cat(columns)


def narrow(
    block: Block, prompts: Tensor, columns: Tensor, hidden: Tensor, base: Recording
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The block's recorded arguments for these tokens; the residual replaced, masks left to the attention."""

    keys = {base.length} | ({block.crossing.shared.k.shape[2]} if block.crossing is not None else set())

    def one(name: int | str, value: Any) -> Any:
        if name == block.layer.ports["resid_pre"].key:
            return hidden
        if torch.is_tensor(value) and value.ndim == 4 and value.shape[2] in (1, base.length) and value.shape[3] in keys:
            return None
        return _tokens(value, prompts, columns, base)

    args = tuple(one(n, value) for n, value in enumerate(block.args))
    return args, {name: None if "mask" in name else one(name, value) for name, value in block.kwargs.items()}


def _tokens(value: Any, prompts: Tensor, columns: Tensor, base: Recording) -> Any:
    """An argument that has an entry per position, at these tokens; others as they are; a cache is left out."""
    if isinstance(value, tuple):
        return tuple(_tokens(v, prompts, columns, base) for v in value)
    if hasattr(value, "get_seq_length"):
        return None
    if not torch.is_tensor(value):
        return value
    n, b = base.length, base.prompts
    if value.ndim == 4 and value.shape[-2:] == (n, n):
        return None
    if value.ndim == 1 and value.shape[0] == n:
        return value[columns]
    for axis in range(1, value.ndim):
        if value.shape[axis] == n and value.shape[axis - 1] in (1, b):
            moved = value.movedim((axis - 1, axis), (0, 1))
            picked = moved[prompts if moved.shape[0] == b else torch.zeros_like(prompts), columns]
            return picked[None].movedim((0, 1), (axis - 1, axis))
    return value
