"""What goes through one block at a time: the rows of a sweep that have joined, and what they change there.

A slice is some rows in one call of one block, [1, token, d]; it stands at the block's attention and at its ports, and
puts each version's changes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Layer
from interp.hooks.drive.blocks import Blocks, Enough
from interp.hooks.drive.intercept import Intercept, OwnTap
from interp.hooks.drive.packed import Shared, attend
from interp.hooks.drive.recording import BlockCall
from interp.hooks.drive.versions import Change, RowBatch
from interp.hooks.stand.call import Call
from interp.hooks.stand.ports import head_results

CALLED = ("q", "k", "v", "z")
TOKENS = 2048
"""Tokens that go through a block at a time."""


@dataclass(eq=False)
class Slice(OwnTap):
    """What one call of one block works on; a tap at its attention."""

    blocks: Blocks
    block: BlockCall
    rows: Sequence[RowBatch]
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Each rectangle's own keys and values, where they were taken before."""
    harvest: bool = False
    """Whether only these are wanted."""
    added: Tensor | None = None

    @cached_property
    def changes(self) -> dict[str, list[tuple[Change, RowBatch, int]]]:
        """By component, what this layer's versions change: which rows, and where their tokens begin."""
        found: dict[str, list[tuple[Change, RowBatch, int]]] = {}
        for rows in self.rows:
            for change, low, high in rows.changes(self.block.layer.index):
                found.setdefault(change.component, []).append(
                    (change, rows.part(low, high), rows.at + low * rows.width)
                )
        return found

    @cached_property
    def prompts(self) -> Tensor:
        """Of every token."""
        return torch.cat([rows.prompts.repeat_interleave(rows.width) for rows in self.rows])

    @cached_property
    def columns(self) -> Tensor:
        """Of every token."""
        return torch.cat([rows.columns.repeat(len(rows)) for rows in self.rows])

    def stand(self, put: Intercept) -> None:
        """At the attentions of the block, and at the ports where something changes."""
        layer, other = self.block.layer, self.block.crossing
        put.tap(layer, self)
        ports = dict(layer.ports)
        if other is not None:
            put.tap(other.layer, CrossingTap(self, other.shared))
            ports |= {f"cross.{component}": port for component, port in other.layer.ports.items()}
        for component, port in ports.items():
            if change := self._writer(component):
                put.port(port, change, rows=1)

    def before(self, call: Call) -> None:
        for name in ("q", "k", "v"):
            value = getattr(call, name).transpose(1, 2)
            setattr(call, name, self.write(name, value).transpose(1, 2))

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        if not self.own:
            self.own = [(_rows_of(call.k, rows), _rows_of(call.v, rows)) for rows in self.rows]
        if self.harvest:
            raise Enough
        k, v = zip(*self.own, strict=True)
        call.z = attend(call.q, k, v, self.rows, self.block.shared)

    def after(self, call: Call) -> None:
        call.z = self.write("z", call.z)
        if "result" in self.changes:
            self.added = self._writes(call.z)

    def _writer(self, component: str) -> Callable[[Tensor], Tensor] | None:
        """What happens at the port of a component, if anything does."""
        if component == "attn_out" and not {"attn_out", "result"}.isdisjoint(self.changes):
            return self._attended
        if component not in self.changes or component in (*CALLED, "resid_pre", "resid_post"):
            return None
        return partial(self.write, component)

    def _attended(self, x: Tensor) -> Tensor:
        """The attention's output [1, token, d] with what changed results add to it, then with what replaces it."""
        return self.write("attn_out", x if self.added is None else x + self.added)

    def write(self, component: str, x: Tensor) -> Tensor:
        """x [1, token, ...] with the changes of this layer's versions written into it."""
        if component not in self.changes:
            return x
        result = x.clone()
        for change, rows, at in self.changes[component]:
            change.put(result[0], rows.prompts, rows.columns, at)
        return result

    def _writes(self, z: Tensor) -> Tensor:
        """What the changed results add to the attention's output [1, token, d]: the new results less those of z."""
        layer: Layer = self.block.layer
        out, added = self.blocks.module.get_submodule(layer.out or ""), z.new_zeros(1, z.shape[1], self._width)
        for change, rows, at in self.changes["result"]:
            heads = change.heads or tuple(range(layer.heads))
            tokens, values = change.hits(rows.prompts, rows.columns)
            new = values[:, list(heads)].to(z)
            added[0, at + tokens] += (new - head_results(out, z[:, at + tokens], heads)[0]).sum(1)
        return added

    @property
    def _width(self) -> int:
        return self.blocks.tower.width


@dataclass(eq=False)
class CrossingTap(OwnTap):
    """At a block's attention to another tower: every row sees all of its prompt's keys there, as recorded."""

    slice: Slice
    shared: Shared

    def before(self, call: Call) -> None:
        call.q = self.slice.write("cross.q", call.q.transpose(1, 2)).transpose(1, 2)

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        keys = self.shared.k.shape[2]
        crossing = [RowBatch(rows.prompts, keys, keys, at=rows.at, queries=rows.columns) for rows in self.slice.rows]
        k, v = ([x[:1, :, :0].expand(len(r), -1, -1, -1) for r in crossing] for x in (self.shared.k, self.shared.v))
        call.z = attend(call.q, k, v, crossing, self.shared)

    def after(self, call: Call) -> None:
        call.z = self.slice.write("cross.z", call.z)


def _rows_of(x: Tensor, rows: RowBatch) -> Tensor:
    """[row, head, column, d] of x [1, head, token, d]."""
    return x[0, :, rows.at : rows.at + rows.tokens].unflatten(1, (len(rows), -1)).transpose(0, 1)


def slices(groups: Sequence[RowBatch], layer: int) -> Iterator[list[RowBatch]]:
    """What has joined of all groups in runs of about `TOKENS` tokens."""
    found: list[RowBatch] = []
    at = 0
    for group in groups:
        width, active, low = group.width, group.until(layer), 0
        while low < active:
            high = low + min(active - low, _whole((TOKENS - at) // width, group.beat))
            found.append(group.part(low, high, at))
            at, low = at + (high - low) * width, high
            if at + width > TOKENS:
                yield found
                found, at = [], 0
    if found:
        yield found


def _whole(rows: int, beat: int) -> int:
    """As many rows, or a few less so that every prompt has as many of them."""
    return max(1, rows // beat * beat or rows)


def only(rows: Sequence[RowBatch], columns: Tensor) -> list[RowBatch]:
    """The same rows where each has only these columns."""
    found, at = [], 0
    for some in rows:
        found.append(some.only(columns, at))
        at += len(some) * len(columns)
    return found
