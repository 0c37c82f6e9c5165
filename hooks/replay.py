"""Run many changed versions of a few prompts, recomputing only what each change can reach.

A change at layer l, first column p, leaves layers below l and columns before p untouched. So the prompts are run once
and kept; then the blocks are driven from here, layer by layer. A changed version (a row) joins the batch when its
layer is reached, as its suffix from column p on; keys and values before p are the prompt's own. The last layer
computes only the columns that are read. Rows whose change changes nothing cost nothing, and their effect is exactly
0.

Every wave carries one unchanged row per prompt: effects subtract it, and how far it is from the recorded run is the
noise floor, since other batch shapes take other matrix products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy import Anatomy, Tower
from interp.hooks.dissect import outer_tensor
from interp.hooks.faster import fused
from interp.hooks.interface import Call, Switch, Tap
from interp.hooks.packed import Rectangle, attend
from interp.hooks.ports import stand_at
from interp.hooks.readout import Readout
from interp.hooks.recording import Block, Recording, record

CALLED = ("q", "k", "v", "z")
TOKENS = 4096
"""Tokens that go through a block at a time."""


@dataclass(frozen=True, eq=False)
class Change:
    """New values at one component of one layer: `values` [prompt, column, ...] at the columns where `where` is true."""

    layer: int
    component: str
    values: Tensor
    where: Tensor
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One changed version of one prompt; `number` says which question it answers."""

    number: int
    prompt: int
    changes: tuple[Change, ...] = ()
    start: int = 0
    layer: int = 0


@dataclass(eq=False)
class Group:
    """The active rows with the same suffix, their hidden states in one buffer that fills as rows join."""

    start: int
    end: int
    rows: list[Row]
    hidden: Tensor
    active: int = 0


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


class _Enough(Exception):
    """The attention has what it needs; the rest of the block would be thrown away."""


@dataclass(eq=False)
class _Slice(Tap):
    """What one call of one block works on; a tap at its attention."""

    block: Block
    pieces: Sequence[Piece]
    columns: Tensor | None = None
    """Only these columns are queries (in the last layer); keys and values were taken before."""
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    harvest: bool = False
    changes: dict[str, list[tuple[Change, Row, Tensor, int]]] = field(default_factory=dict)
    """By component, what this layer's rows change: the columns of their tokens, and where in the slice they begin."""

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

    def attend(self, call: Call) -> None:
        rectangles = [self._rectangle(piece) for piece in self.pieces]
        if self.columns is None:
            self.own = [(self._rows_of(call.k, r), self._rows_of(call.v, r)) for r in rectangles]
        if self.harvest:
            raise _Enough
        k, v = zip(*self.own, strict=True)
        call.z = attend(call.q, k, v, rectangles, self.block.shared)

    def after(self, call: Call) -> None:
        call.z = self.write("z", call.z)

    def _rectangle(self, piece: Piece) -> Rectangle:
        return Rectangle(piece.at, piece.group.start, piece.group.end, piece.prompts, self.columns)

    @staticmethod
    def _rows_of(x: Tensor, r: Rectangle) -> Tensor:
        return x[0, :, r.at : r.at + r.tokens].unflatten(1, (r.rows, -1)).transpose(0, 1)

    def write(self, component: str, x: Tensor) -> Tensor:
        """x [1, token, ...] with the changes of this layer's rows written into it."""
        if component not in self.changes:
            return x
        result = x.clone()
        for change, row, columns, at in self.changes[component]:
            self._put(result, change, row, columns, at)
        return result

    @staticmethod
    def _put(x: Tensor, change: Change, row: Row, columns: Tensor, at: int) -> None:
        hit = change.where[row.prompt, columns].nonzero().flatten()
        values = change.values[row.prompt, columns[hit]].to(x.dtype)
        if change.heads is None:
            x[0, at + hit] = values
        else:
            heads = torch.tensor(change.heads)
            x[0, (at + hit)[:, None], heads] = values[:, heads]


class Replay:
    """One tower's recorded run of some prompts, and its changed versions."""

    def __init__(
        self, module: nn.Module, anatomy: Anatomy, tower: Tower, kwargs: Mapping[str, Any], valid: Tensor
    ) -> None:
        self.module, self.tower, self.kwargs = module, tower, kwargs
        self.base: Recording = record(module, anatomy, tower, kwargs)
        self.readout = Readout(module, tower, self.base, kwargs)
        self.ends = _ends(valid) if self.readout.by_position else torch.full((len(valid),), self.base.length)
        self.earliest = (
            _closed(self.base) if self.readout.by_position else torch.zeros(self.base.length, dtype=torch.long)
        )

    def row(self, number: int, prompt: int, changes: Sequence[Change]) -> Row | None:
        """The row of these changes; None where none of them changes anything, by comparison with the recorded run."""
        kept = tuple(c for c in changes if bool(c.where[prompt].any()))
        if not kept:
            return None
        start = min(int(c.where[prompt].int().argmax()) for c in kept)
        return Row(number, prompt, kept, int(self.earliest[start]), min(c.layer for c in kept))

    def run(self, rows: Sequence[Row], read: Tensor, columns: Sequence[int] | None) -> Tensor:
        """Logits [row, read, column] at `read` [prompt, read position] for every row, in their order."""
        order = sorted(
            range(len(rows)),
            key=lambda n: (rows[n].start, int(self.ends[rows[n].prompt]), rows[n].layer, rows[n].prompt),
        )
        groups = self._groups([rows[n] for n in order])
        with torch.no_grad(), fused(self.module):
            self._drive(groups, read)
            done = [self._answers(group, read, columns) for group in groups]
        flat = torch.cat(done)
        return torch.empty_like(flat).index_copy_(0, torch.tensor(order), flat)

    def _groups(self, rows: Sequence[Row]) -> list[Group]:
        found: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in rows:
            found[row.start, int(self.ends[row.prompt])].append(row)
        d, dtype = self.base.left.shape[-1], self.base.left.dtype
        return [
            Group(s, e, members, torch.empty(len(members), e - s, d, dtype=dtype)) for (s, e), members in found.items()
        ]

    def _drive(self, groups: Sequence[Group], read: Tensor) -> None:
        for n, block in enumerate(self.base.blocks):
            for group in groups:
                self._join(group, block)
            last = n == len(self.base.blocks) - 1
            columns = self._columns_read(groups, read) if last and self.readout.by_position else None
            for pieces in _slices(groups):
                self._block(block, pieces, columns)

    def _join(self, group: Group, block: Block) -> None:
        """Rows whose layer this is come in, with the prompt's own residual and what they change in it."""
        first = group.active
        while group.active < len(group.rows) and group.rows[group.active].layer <= block.layer.index:
            group.active += 1
        if group.active == first:
            return
        prompts = torch.tensor([row.prompt for row in group.rows[first : group.active]])
        group.hidden[first : group.active] = block.entered[prompts, group.start : group.end]
        columns = torch.arange(group.start, group.end)
        for n in range(first, group.active):
            for change in group.rows[n].changes:
                if change.layer == block.layer.index and change.component == "resid_pre":
                    _Slice._put(group.hidden[n][None], change, group.rows[n], columns, 0)

    def _columns_read(self, groups: Sequence[Group], read: Tensor) -> Tensor | None:
        """The columns that are read, if they are the same for every prompt and lie in every suffix."""
        if not bool((read == read[:1]).all()) or int(read.min()) < max(group.start for group in groups):
            return None
        return torch.unique(read[0])

    def _block(self, block: Block, pieces: Sequence[Piece], columns: Tensor | None) -> None:
        whole = _Slice(block, pieces)
        if columns is None or not _plain_last(pieces, block):
            made = self._call(whole, _packed(pieces))
            for piece in pieces:
                width = piece.group.end - piece.group.start
                piece.group.hidden[piece.low : piece.high] = made[
                    0, piece.at : piece.at + (piece.high - piece.low) * width
                ].unflatten(0, (-1, width))
            return
        whole.harvest = True
        self._call(whole, _packed(pieces))
        narrow = _narrowed(pieces, columns)
        part = _Slice(block, narrow, columns, whole.own)
        hidden = torch.cat([p.group.hidden[p.low : p.high][:, columns - p.group.start].flatten(0, 1) for p in pieces])[
            None
        ]
        made = self._call(part, hidden)
        for piece in narrow:
            rows = piece.high - piece.low
            piece.group.hidden[piece.low : piece.high, columns - piece.group.start] = made[
                0, piece.at : piece.at + rows * len(columns)
            ].unflatten(0, (rows, -1))

    def _call(self, slice_: _Slice, hidden: Tensor) -> Tensor:
        block, layer = slice_.block, slice_.block.layer
        prompts, columns = _whereabouts(slice_)
        args, kwargs = _narrow(block, prompts, columns, hidden, self.base)
        attention, body = self.module.get_submodule(layer.attention), self.module.get_submodule(layer.block)
        with ExitStack() as undo:
            Switch.watch(attention, slice_)
            undo.callback(Switch.forget, attention, slice_)
            for component in slice_.changes:
                if (
                    component not in CALLED
                    and component in layer.ports
                    and component not in ("resid_pre", "resid_post")
                ):
                    write = _writer(slice_, component)
                    undo.callback(stand_at(self.module, layer.ports[component], write, batch=lambda: 1).remove)
            try:
                out = outer_tensor(body(*args, **kwargs))[1]
            except _Enough:
                return hidden
        return slice_.write("resid_post", out)

    def _answers(self, group: Group, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        prompts = torch.tensor([row.prompt for row in group.rows], dtype=torch.long)
        rows = torch.arange(len(prompts))[:, None]
        wanted = read[prompts]
        if not self.readout.by_position:
            return self._whole(group, prompts, read, columns)
        before = wanted < group.start
        inside = (wanted - group.start).clamp(min=0)
        hidden = torch.where(before[..., None], self.base.left[prompts[:, None], wanted], group.hidden[rows, inside])
        return self.readout.read(hidden, columns)

    def _whole(self, group: Group, prompts: Tensor, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        parts = []
        for some in torch.arange(len(prompts)).split(max(1, TOKENS // self.base.length)):
            logits = self.readout.whole(group.hidden[some], prompts[some])
            logits = (
                logits[:, None] if logits.ndim == 2 else logits[torch.arange(len(some))[:, None], read[prompts[some]]]
            )
            parts.append(logits if columns is None else logits[..., list(columns)])
        return torch.cat(parts)

    def unchanged(self, start: int = 0) -> list[Row]:
        """One row per prompt that changes nothing, to subtract."""
        return [
            Row(-1, b, (), int(self.earliest[min(start, self.base.length - 1)]), 0) for b in range(self.base.prompts)
        ]


def _writer(slice_: _Slice, component: str) -> Any:
    return lambda x: slice_.write(component, x)


def _plain_last(pieces: Sequence[Piece], block: Block) -> bool:
    """Whether the last layer may be cut to the columns read: no row changes something there but the residual before
    it."""
    return all(
        c.layer != block.layer.index or c.component in ("resid_pre", "q", "k", "v", "z")
        for p in pieces
        for r in p.group.rows[p.low : p.high]
        for c in r.changes
    )


def _ends(valid: Tensor) -> Tensor:
    """The column after each prompt's last real token."""
    columns = torch.arange(1, valid.shape[1] + 1)
    return (valid.cpu() * columns).amax(1)


def _closed(base: Recording) -> Tensor:
    """For each column the earliest one that a change there can reach: itself in a causal tower, 0 where all see all."""
    n = base.length
    reach = torch.zeros(n, n, dtype=torch.bool)
    for block in base.blocks:
        bias = block.shared.bias
        reach |= torch.ones(n, n, dtype=torch.bool) if bias is None else (bias > -torch.inf).flatten(0, 1).any(0)
    earliest = torch.where(reach, torch.arange(n)[:, None], n).amin(0)
    earliest = torch.minimum(earliest, torch.arange(n))
    return earliest.flip(0).cummin(0).values.flip(0)


def _slices(groups: Sequence[Group]) -> Iterator[list[Piece]]:
    """The active rows of all groups in runs of about `TOKENS` tokens."""
    pieces: list[Piece] = []
    at = 0
    for group in groups:
        width, low = group.end - group.start, 0
        while low < group.active:
            rows = min(group.active - low, max(1, (TOKENS - at) // width))
            pieces.append(Piece(group, low, low + rows, at))
            at, low = at + rows * width, low + rows
            if at + width > TOKENS:
                yield pieces
                pieces, at = [], 0
    if pieces:
        yield pieces


def _narrowed(pieces: Sequence[Piece], columns: Tensor) -> list[Piece]:
    """The same rows where each has only these columns."""
    found, at = [], 0
    for p in pieces:
        found.append(Piece(p.group, p.low, p.high, at))
        at += (p.high - p.low) * len(columns)
    return found


def _packed(pieces: Sequence[Piece]) -> Tensor:
    return torch.cat([p.group.hidden[p.low : p.high].flatten(0, 1) for p in pieces])[None]


def _whereabouts(slice_: _Slice) -> tuple[Tensor, Tensor]:
    """Prompt and column of every token of a slice."""
    prompts, columns = [], []
    for p in slice_.pieces:
        own = torch.arange(p.group.start, p.group.end) if slice_.columns is None else slice_.columns
        prompts.append(p.prompts.repeat_interleave(len(own)))
        columns.append(own.repeat(p.high - p.low))
    return torch.cat(prompts), torch.cat(columns)


def _narrow(
    block: Block, prompts: Tensor, columns: Tensor, hidden: Tensor, base: Recording
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The block's recorded arguments for these tokens; the residual replaced, masks left to the attention."""

    def one(name: int | str, value: Any) -> Any:
        if name == block.layer.ports["resid_pre"].key:
            return hidden
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
