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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.faster import DEFAULT, fused, packed, products
from interp.hooks.drive.questions import Cell, Reads
from interp.hooks.drive.readout import Readout
from interp.hooks.drive.recording import Block, CannotDrive, Recording, record
from interp.hooks.drive.slices import (
    TOKENS,
    Change,
    CrossingTap,
    Enough,
    Group,
    Piece,
    Row,
    Slice,
    joined,
    narrow,
    narrowed,
    slices,
    whereabouts,
)
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.ports import stand_at
from interp.hooks.survey.dissect import outer_tensor


class Replay:
    """One tower's recorded run of some prompts, and its changed versions."""

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        tower: Tower,
        kwargs: Mapping[str, Any],
        valid: Tensor | None,
        *,
        kept: Tensor | None = None,
        beside: AbstractContextManager[Any] | None = None,
        onward: Replay | None = None,
        depth: int | None = None,
        product: str = DEFAULT,
    ) -> None:
        """`valid` are the tower's real positions, where they are known; `onward` is the replay of the tower that this
        one's output goes into, which reads it after `depth` blocks; `product` is how matrices are multiplied
        (`hooks/drive/faster.py`)."""
        self.onward, self.product = onward, product
        self.module, self.tower, self.kwargs = module, tower, kwargs
        self.base: Recording = record(module, anatomy, tower, kwargs, kept=kept, beside=beside).cut(depth)
        self.weighed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """By layer and pattern (which is kept, so that no other one can get its id): the z it makes."""
        self.readout = Readout(module, tower, self.base, kwargs)
        self.ends = self._ends(valid)
        self.earliest = (
            _closed(self.base) if self.readout.by_position else torch.zeros(self.base.length, dtype=torch.long)
        )

    def _ends(self, valid: Tensor | None) -> Tensor:
        """The column after each prompt's last real token; where it is not known which are real, the last of all."""
        if valid is None or not self.readout.by_position or valid.shape != (self.prompts, self.base.length):
            return torch.full((self.prompts,), self.base.length)
        return (valid.cpu() * torch.arange(1, self.base.length + 1)).amax(1)

    def check_onward(self) -> None:
        """Raise where the tower above reads something else than this one's last block."""
        if self.onward is None:
            return
        first = self.onward.base.blocks[0]
        body, key = self.module.get_submodule(first.layer.block), first.layer.ports["resid_pre"].key
        with torch.no_grad():
            entered = self.readout.entering(body, key, self.base.left, torch.arange(self.prompts))
        scale = float(first.entered.abs().max())
        if entered.shape != first.entered.shape or float((entered - first.entered).abs().max()) > 1e-4 * scale:
            raise CannotDrive("the tower above reads something else than the last block's output")

    def can(self, cell: Cell) -> bool:
        """Whether a cell can be answered here: a pattern stands for a z as long as the values it weighs are the
        base's, keys and values of another tower are shared by all rows, and a group is of one tower."""
        parts = list(cell.parts)
        if len({"decoder" if p.site.tower == "cross" else p.site.tower for p in parts}) > 1:
            return False
        if any(p.site.tower == "cross" and p.site.component in ("k", "v", "result") for p in parts):
            return False
        if len({"cross" if p.site.tower == "cross" else "own" for p in parts if p.site.component == "pattern"}) > 1:
            return False
        if all(part.site.component != "pattern" for part in parts):
            return True
        return len({part.site.layer for part in parts}) == 1 and {p.site.component for p in parts} == {"pattern"}

    def change(self, part: Cell) -> Change:
        """What one place of a cell changes."""
        site, where = part.site, part.where.cpu()
        if site.layer is None:
            return Change(self.base.blocks[0].layer.index, "resid_pre", part.values, where, None, part.units)
        cross = "cross." if site.tower == "cross" else ""
        if site.component != "pattern":
            return Change(site.layer, cross + site.component, part.values, where, site.heads, part.units)
        key = site.layer, id(part.values)
        if key not in self.weighed:
            block = next((block for block in self.base.blocks if block.layer.index == site.layer), None)
            if block is None:  # after the last block that anything reads
                return Change(site.layer, cross + "z", part.values, where, site.heads)
            shared = block.crossing.shared if cross and block.crossing is not None else block.shared
            self.weighed[key] = part.values, _weighed(part.values, shared.v)
        return Change(site.layer, cross + "z", self.weighed[key][1], where, site.heads)

    @property
    def prompts(self) -> int:
        """How many prompts the base has."""
        return self.base.prompts

    def rows(self, number: int, cell: Cell) -> list[Row | None]:
        """A cell's row for every prompt; None where it changes nothing, by comparison with the recorded run."""
        changes = [self.change(part) for part in cell.parts]
        moved = [part.live.cpu() for part in cell.parts]
        end = self.base.blocks[-1].layer.index
        live = torch.stack([where.any(1) & (c.layer <= end) for where, c in zip(moved, changes, strict=True)])
        first = torch.stack([where.int().argmax(1) for where in moved])
        starts = torch.where(live, first, self.base.length - 1).amin(0).tolist()
        found: list[Row | None] = []
        for prompt, (start, mine) in enumerate(zip(starts, live.T.tolist(), strict=True)):
            layer = min((change.layer for change, alive in zip(changes, mine, strict=True) if alive), default=0)
            row = Row(number, prompt, tuple(changes), int(self.earliest[start]), layer, cell.site.tower)
            found.append(row if any(mine) else None)
        return found

    def cost(self, row: Row) -> int:
        """Tokens times layers."""
        return (int(self.ends[row.prompt]) - row.start) * sum(b.layer.index >= row.layer for b in self.base.blocks)

    def bytes(self, row: Row, reads: Reads) -> int:
        """Memory of the row while it is under way, and of its logits."""
        size = self.base.left.element_size()
        columns = self.readout.vocabulary if reads.columns is None else len(reads.columns)
        read = reads.positions.shape[1] if self.readout.by_position else self.base.length
        hidden = (self._end(row, reads.positions) - row.start) * self.base.left.shape[-1]
        return size * (hidden + 2 * read * columns)

    def run(
        self,
        rows: Sequence[Row],
        read: Tensor,
        columns: Sequence[int] | None,
        *,
        tell: Callable[[int], object] = lambda done: None,
    ) -> Tensor:
        """Logits [row, read, column] at `read` [prompt, read position] for every row, in their order; `tell` hears of
        tokens driven through a layer."""
        order = sorted(range(len(rows)), key=lambda n: self._turn(rows[n], read))
        groups = self._groups([rows[n] for n in order], read)
        with torch.no_grad(), products(self.product), fused(self.module):
            self._drive(groups, read, tell)
            done = [self._answers(group, read, columns) for group in groups]
        flat = torch.cat(done)
        return torch.empty_like(flat).index_copy_(0, torch.tensor(order, device=flat.device), flat)

    def _end(self, row: Row, read: Tensor) -> int:
        """The column after the last that is real or read."""
        return max(int(self.ends[row.prompt]), int(read[row.prompt].max()) + 1 if self.readout.by_position else 0)

    def _turn(self, row: Row, read: Tensor) -> tuple[int, ...]:
        """Rows of a group join layer by layer, and take the prompts in turn."""
        return row.start, self._end(row, read), row.layer, row.number, row.prompt

    def _groups(self, rows: Sequence[Row], read: Tensor) -> list[Group]:
        found: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in rows:
            found[row.start, self._end(row, read)].append(row)
        d = self.base.left.shape[-1]
        return [
            Group(s, e, members, self.base.left.new_empty(len(members), e - s, d)) for (s, e), members in found.items()
        ]

    def _drive(self, groups: Sequence[Group], read: Tensor, tell: Callable[[int], object]) -> None:
        for n, block in enumerate(self.base.blocks):
            for group in groups:
                group.hidden = group.hidden.to(block.shared.k.device)
                self._join(group, block)
            last = n == len(self.base.blocks) - 1
            columns = self._columns_read(groups, read) if last and self.readout.by_position else None
            tokens = sum(group.active * (group.end - group.start) for group in groups)
            with packed(self.module.get_submodule(block.layer.block), self.product, tokens):
                for pieces in slices(groups):
                    self._block(block, pieces, columns)
                    tell(sum((p.high - p.low) * (p.group.end - p.group.start) for p in pieces))

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
                    Slice.put(group.hidden[n][None], change, group.rows[n], columns, 0)

    def _columns_read(self, groups: Sequence[Group], read: Tensor) -> Tensor | None:
        """The columns that are read, if they are the same for every prompt and lie in every suffix."""
        if not bool((read == read[:1]).all()) or int(read.min()) < max(group.start for group in groups):
            return None
        return torch.unique(read[0])

    def _block(self, block: Block, pieces: Sequence[Piece], columns: Tensor | None) -> None:
        whole = Slice(block, pieces)
        if columns is None:
            made = self._call(whole, joined(pieces))
            for piece in pieces:
                width = piece.group.end - piece.group.start
                piece.group.hidden[piece.low : piece.high] = made[
                    0, piece.at : piece.at + (piece.high - piece.low) * width
                ].unflatten(0, (-1, width))
            return
        whole.harvest = True
        self._call(whole, joined(pieces))
        narrow = narrowed(pieces, columns)
        part = Slice(block, narrow, columns, whole.own)
        hidden = torch.cat([p.group.hidden[p.low : p.high][:, columns - p.group.start].flatten(0, 1) for p in pieces])[
            None
        ]
        made = self._call(part, hidden)
        for piece in narrow:
            rows = piece.high - piece.low
            piece.group.hidden[piece.low : piece.high, columns - piece.group.start] = made[
                0, piece.at : piece.at + rows * len(columns)
            ].unflatten(0, (rows, -1))

    def _call(self, slice_: Slice, hidden: Tensor) -> Tensor:
        block, layer = slice_.block, slice_.block.layer
        prompts, columns = whereabouts(slice_)
        args, kwargs = narrow(block, prompts, columns, hidden, self.base)
        attention, body = self.module.get_submodule(layer.attention), self.module.get_submodule(layer.block)
        with ExitStack() as undo:
            if "result" in slice_.changes:
                slice_.out = self.module.get_submodule(layer.out or "")
            Switch.watch(attention, slice_)
            undo.callback(Switch.forget, attention, slice_)
            ports = dict(layer.ports)
            if block.crossing is not None:
                other = block.crossing.layer
                tap = CrossingTap(slice_, block.crossing.shared)
                Switch.watch(self.module.get_submodule(other.attention), tap)
                undo.callback(Switch.forget, self.module.get_submodule(other.attention), tap)
                ports |= {f"cross.{component}": port for component, port in other.ports.items()}
            for component, port in ports.items():
                if change := slice_.writer(component):
                    undo.callback(stand_at(self.module, port, change, batch=lambda: 1).remove)
            try:
                out = outer_tensor(body(*args, **kwargs))[1]
            except Enough:
                return hidden
        return slice_.write("resid_post", out)

    def _answers(self, group: Group, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        prompts = torch.tensor([row.prompt for row in group.rows], dtype=torch.long)
        rows = torch.arange(len(prompts))[:, None]
        wanted = read[prompts]
        if not self.readout.by_position:
            whole = self._whole if self.onward is None else self._onward
            return whole(group, prompts, read, columns)
        before = (wanted < group.start).to(group.hidden.device)
        inside = (wanted - group.start).clamp(min=0)
        hidden = torch.where(before[..., None], self.base.left[prompts[:, None], wanted], group.hidden[rows, inside])
        return self.readout.read(hidden, columns)

    def _onward(self, group: Group, prompts: Tensor, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        """Through the tower above, from the first of its positions that this tower's output moves."""
        assert self.onward is not None
        first = self.onward.base.blocks[0]
        body, key = self.module.get_submodule(first.layer.block), first.layer.ports["resid_pre"].key
        rows: list[Row] = []
        for some in torch.arange(len(prompts)).split(max(1, TOKENS // self.onward.base.length)):
            entered = self.readout.entering(body, key, group.hidden[some], prompts[some])
            moved = (entered != first.entered[prompts[some]]).any(-1).cpu()
            for value, where, prompt in zip(entered, moved, prompts[some].tolist(), strict=True):
                all_values, all_where = value.expand(self.prompts, -1, -1), where.expand(self.prompts, -1)
                change = Change(first.layer.index, "resid_pre", all_values, all_where)
                start = int(self.onward.earliest[int(where.int().argmax())])
                rows.append(Row(len(rows), prompt, (change,), start, first.layer.index))
        return self.onward.run(rows, read, columns)

    def _whole(self, group: Group, prompts: Tensor, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        parts = []
        for some in torch.arange(len(prompts)).split(max(1, TOKENS // self.base.length)):
            logits = self.readout.whole(group.hidden[some], prompts[some])
            logits = (
                logits[:, None] if logits.ndim == 2 else logits[torch.arange(len(some))[:, None], read[prompts[some]]]
            )
            parts.append(logits if columns is None else logits[..., list(columns)])
        return torch.cat(parts)

    def unchanged(self, rows: Sequence[Row]) -> list[Row]:
        """One row per prompt that changes nothing and comes in with the first of these rows, to subtract."""
        start, layer = min((r.start for r in rows), default=0), min((r.layer for r in rows), default=0)
        return [Row(-1, b, (), start, layer) for b in range(self.base.prompts)]


def _weighed(pattern: Tensor, v: Tensor) -> Tensor:
    """z [prompt, query, head, d] of a pattern [prompt, head, query, key] over values [prompt, kv head, key, d]."""
    by_group = pattern.to(v.dtype).unflatten(1, (v.shape[1], -1))
    return torch.einsum("bghqk,bgkd->bqghd", by_group, v).flatten(2, 3)


def _closed(base: Recording) -> Tensor:
    """For each column the earliest one that a change there can reach: itself in a causal tower, 0 where all see all."""
    n = base.length
    reach = torch.zeros(n, n, dtype=torch.bool)
    for block in base.blocks:
        bias = block.shared.bias
        reach |= torch.ones(n, n, dtype=torch.bool) if bias is None else (bias > -torch.inf).flatten(0, 1).any(0).cpu()
    earliest = torch.where(reach, torch.arange(n)[:, None], n).amin(0)
    earliest = torch.minimum(earliest, torch.arange(n))
    return earliest.flip(0).cummin(0).values.flip(0)
