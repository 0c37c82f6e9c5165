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
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.blocks import Blocks
from interp.hooks.drive.faster import DEFAULT, fused, packed, products
from interp.hooks.drive.intercept import Intercept
from interp.hooks.drive.questions import Cell, Reads
from interp.hooks.drive.recording import BlockCall, CannotDrive, Recording, key_of
from interp.hooks.drive.slices import TOKENS, Slice, only, slices
from interp.hooks.drive.tail import Readout
from interp.hooks.drive.versions import Change, RowBatch, Version


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
        self.onward, self.product, self.module = onward, product, module
        self.blocks = Blocks(module, anatomy, tower)
        self.base: Recording = self.blocks.record(kwargs, columns=kept, heads=True, beside=beside).cut(depth)
        self.weighed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """By layer and pattern (which is kept, so that no other one can get its id): the z it makes."""
        self.readout = Readout(module, self.base, kwargs)
        self.ends = self._ends(valid)
        if any(b.shared.bias is not None and b.shared.bias.shape[-1] > self.base.length for b in self.base.blocks):
            raise CannotDrive(tower, "its attention reads keys of another tower and its own")
        self.earliest = _closed(self.base) if self.readout.by_position else [0] * self.base.length

    def _ends(self, valid: Tensor | None) -> list[int]:
        """The column after each prompt's last real token; where it is not known which are real, the last of all."""
        if valid is None or not self.readout.by_position or valid.shape != (self.prompts, self.base.length):
            return [self.base.length] * self.prompts
        found: list[int] = (valid.cpu() * torch.arange(1, self.base.length + 1)).amax(1).tolist()
        return found

    def check_onward(self) -> None:
        """Raise where the tower above reads something else than this one's last block."""
        if self.onward is None:
            return
        first = self.onward.first
        with torch.no_grad():
            entered = self._entering(self.base.left, torch.arange(self.prompts))
        scale = float(first.abs().max())
        if entered.shape != first.shape or float((entered - first).abs().max()) > 1e-4 * scale:
            raise CannotDrive(self.base.tower, "the tower above reads something else than the last block's output")

    @property
    def first(self) -> Tensor:
        """The residual with which the run begins."""
        return self.base.entered[self.blocks.layers[0]]

    def _entering(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """What enters the tower above for final hidden states of this one."""
        assert self.onward is not None
        layer = self.onward.base.blocks[0].layer
        return self.readout.entering(self.module.get_submodule(layer.block), key_of(layer), hidden, prompts)

    def can(self, cell: Cell) -> bool:
        """Whether a cell can be answered here: a pattern is used as a z as long as the values it weighs are the base's,
        keys and values of another tower are shared by all rows, and a group is of one tower."""
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
        return self.base.rows

    def versions(self, number: int, cell: Cell) -> list[Version]:
        """A cell's version of every prompt in which it changes something, by comparison with the recorded run."""
        changes = tuple(self.change(part) for part in cell.parts)
        moved = [part.live.cpu() for part in cell.parts]
        end = self.base.blocks[-1].layer.index
        live = torch.stack([where.any(1) & (c.layer <= end) for where, c in zip(moved, changes, strict=True)])
        first = torch.stack([where.int().argmax(1) for where in moved])
        starts = torch.where(live, first, self.base.length - 1).amin(0).tolist()
        found = []
        for prompt, (start, mine) in enumerate(zip(starts, live.T.tolist(), strict=True)):
            if any(mine):
                layer = min(change.layer for change, alive in zip(changes, mine, strict=True) if alive)
                found.append(Version(number, prompt, changes, self.earliest[start], layer))
        return found

    def cost(self, version: Version) -> int:
        """Tokens times layers."""
        blocks = sum(b.layer.index >= version.layer for b in self.base.blocks)
        return (self.ends[version.prompt] - version.start) * blocks

    def bytes(self, version: Version, reads: Reads) -> int:
        """Memory of the version while it is under way, and of its logits."""
        size = self.base.left.element_size()
        columns = self.readout.vocabulary if reads.columns is None else len(reads.columns)
        read = reads.positions.shape[1] if self.readout.by_position else self.base.length
        end = max(self.ends[version.prompt], int(reads.positions[version.prompt].max()) + 1)
        return size * ((end - version.start) * self.base.left.shape[-1] + 2 * read * columns)

    def run(
        self,
        versions: Sequence[Version],
        read: Tensor,
        columns: Sequence[int] | None,
        *,
        tell: Callable[[int], object] = lambda done: None,
    ) -> Tensor:
        """Logits [version, read, column] at `read` [prompt, read position], in the order of the versions; `tell` hears
        of tokens driven through a layer."""
        groups, order = self._groups(versions, read)
        with torch.no_grad(), products(self.product), fused(self.module):
            self._drive(groups, read, tell)
            done = [self._answers(group, read, columns) for group in groups]
        flat = torch.cat(done)
        return torch.empty_like(flat).index_copy_(0, torch.tensor(order, device=flat.device), flat)

    def _groups(self, versions: Sequence[Version], read: Tensor) -> tuple[list[RowBatch], list[int]]:
        """Versions with the same columns together, in the order in which they join and taking the prompts in turn; and
        which is where."""
        last = read.amax(1).tolist() if self.readout.by_position else [-1] * self.prompts
        ends = [max(end, column + 1) for end, column in zip(self.ends, last, strict=True)]
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for n in sorted(
            range(len(versions)), key=lambda n: (versions[n].layer, versions[n].number, versions[n].prompt)
        ):
            found[versions[n].start, ends[versions[n].prompt]].append(n)
        ordered = sorted(found.items())
        groups = [RowBatch.of([versions[n] for n in mine], end, self.base.left) for (_, end), mine in ordered]
        return groups, [n for _, mine in ordered for n in mine]

    def _drive(self, groups: Sequence[RowBatch], read: Tensor, tell: Callable[[int], object]) -> None:
        below = -1
        for block in self.base.blocks:
            layer = block.layer.index
            for group in groups:
                self._join(group, block, below)
            last = block is self.base.blocks[-1]
            columns = self._columns_read(groups, read) if last and self.readout.by_position else None
            tokens = sum(group.until(layer) * group.width for group in groups)
            with packed(self.module.get_submodule(block.layer.block), self.product, tokens):
                for rows in slices(groups, layer):
                    self._block(block, rows, columns)
                    tell(sum(some.tokens for some in rows))
            below = layer

    def _join(self, group: RowBatch, block: BlockCall, below: int) -> None:
        """Versions whose layer this is come in, with the prompt's own residual and what they change in it."""
        layer = block.layer.index
        assert group.hidden is not None
        group.hidden = group.hidden.to(block.shared.k.device)
        low, high = group.until(below), group.until(layer)
        if low == high:
            return
        new = group.part(low, high)
        group.hidden[low:high] = self.base.entered[layer][new.prompts, group.start : group.end]
        for change, first, last in new.changes(layer):
            if change.component == "resid_pre":
                some = new.part(first, last)
                change.put(some.flat(), some.prompts, some.columns, 0)

    def _columns_read(self, groups: Sequence[RowBatch], read: Tensor) -> Tensor | None:
        """The columns that are read, if they are the same for every prompt and are in every suffix."""
        if not bool((read == read[:1]).all()) or int(read.min()) < max(group.start for group in groups):
            return None
        return torch.unique(read[0])

    def _block(self, block: BlockCall, rows: Sequence[RowBatch], columns: Tensor | None) -> None:
        """Rows through a block, or only these of their columns, whose attention needs the keys of all."""
        whole = Slice(self.blocks, block, rows, harvest=columns is not None)
        made = self._call(whole)
        if columns is not None:
            rows = only(rows, columns)
            made = self._call(Slice(self.blocks, block, rows, whole.own))
        for some in rows:
            some.keep(made)

    def _call(self, part: Slice) -> Tensor:
        hidden = torch.cat([rows.flat() for rows in part.rows])[None]
        with Intercept(self.module) as put:
            part.stand(put)
            out = self.blocks.call(self.base, part.block, hidden, part)
        return hidden if out is None else part.write("resid_post", out)

    def _answers(self, group: RowBatch, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        assert group.hidden is not None
        wanted, rows = read[group.prompts], torch.arange(len(group))[:, None]
        if not self.readout.by_position:
            whole = self._whole if self.onward is None else self._onward
            return whole(group.hidden, group.prompts, read, columns)
        before = (wanted < group.start).to(group.hidden.device)
        inside = (wanted - group.start).clamp(min=0)
        plain = self.base.left[group.prompts[:, None], wanted]
        hidden = torch.where(before[..., None], plain, group.hidden[rows, inside])
        return self.readout.read(self.readout.final(hidden), columns)

    def _onward(self, hidden: Tensor, prompts: Tensor, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        """Through the tower above, from the first of its positions that this tower's output moves."""
        assert self.onward is not None
        above, first = self.onward, self.onward.first
        layer = above.blocks.layers[0]
        found: list[Version] = []
        for some in torch.arange(len(prompts)).split(max(1, TOKENS // above.base.length)):
            entered = self._entering(hidden[some], prompts[some])
            moved = (entered != first[prompts[some]]).any(-1).cpu()
            for value, where, prompt in zip(entered, moved, prompts[some].tolist(), strict=True):
                all_values, all_where = value.expand(self.prompts, -1, -1), where.expand(self.prompts, -1)
                change = Change(layer, "resid_pre", all_values, all_where)
                start = above.earliest[int(where.int().argmax())]
                found.append(Version(len(found), prompt, (change,), start, layer))
        return above.run(found, read, columns)

    def _whole(self, hidden: Tensor, prompts: Tensor, read: Tensor, columns: Sequence[int] | None) -> Tensor:
        reads, parts = Reads(read, None if columns is None else tuple(columns)), []
        for some in torch.arange(len(prompts)).split(max(1, TOKENS // self.base.length)):
            logits = self.readout.whole(hidden[some], prompts[some])
            parts.append(reads.take(prompts[some].tolist()).of(logits))
        return torch.cat(parts)

    def unchanged(self, versions: Sequence[Version]) -> list[Version]:
        """One version per prompt that changes nothing and joins with the first of these, to subtract."""
        start, layer = min((v.start for v in versions), default=0), min((v.layer for v in versions), default=0)
        return [Version(-1, prompt, (), start, layer) for prompt in range(self.prompts)]


def _weighed(pattern: Tensor, v: Tensor) -> Tensor:
    """z [prompt, query, head, d] of a pattern [prompt, head, query, key] over values [prompt, kv head, key, d]."""
    by_group = pattern.to(v.dtype).unflatten(1, (v.shape[1], -1))
    return torch.einsum("bghqk,bgkd->bqghd", by_group, v).flatten(2, 3)


def _closed(base: Recording) -> list[int]:
    """For each column the earliest one that a change there can reach: itself in a causal tower, 0 where all see all."""
    n = base.length
    reach = torch.zeros(n, n, dtype=torch.bool)
    for block in base.blocks:
        bias = block.shared.bias
        reach |= torch.ones(n, n, dtype=torch.bool) if bias is None else (bias > -torch.inf).flatten(0, 1).any(0).cpu()
    earliest = torch.where(reach, torch.arange(n)[:, None], n).amin(0)
    earliest = torch.minimum(earliest, torch.arange(n))
    found: list[int] = earliest.flip(0).cummin(0).values.flip(0).tolist()
    return found
