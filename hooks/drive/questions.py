"""The questions of a sweep as values: what to put where, what to read, and the answer. Another process can run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site

TEXT = frozenset(
    "input_ids attention_mask token_type_ids position_ids decoder_input_ids decoder_attention_mask".split()
)


@dataclass(frozen=True, eq=False)
class Cell:
    """New values [prompt, position, ...] at a site, where `where` [prompt, position] says so.

    Of a pattern the values are [prompt, head, query, key] and the positions are queries. `units` are indices of the
    last axis, None for all of them. `also` holds what is patched together with it.
    """

    site: Site
    values: Tensor
    where: Tensor
    units: tuple[int, ...] | None = None
    also: tuple[Cell, ...] = ()
    moved: Tensor | None = None
    """[prompt, position] of `where` that differs from the base run, where not all of it does. In a cell of several
    places a value like the base's still counts: another place may have moved what it replaces."""

    @property
    def live(self) -> Tensor:
        """[prompt, position] where this place alone changes something."""
        return self.where if self.moved is None else self.where & self.moved

    @property
    def parts(self) -> Iterator[Cell]:
        """Each place of the cell alone."""
        yield replace(self, also=())
        yield from self.also

    @property
    def changed(self) -> Tensor:
        """[prompt], whether anything is put anywhere."""
        return torch.stack([part.live.any(1) for part in self.parts]).any(0)

    def edits(self) -> list[Set]:
        """The same as edits of a plain run."""
        return [_edit(part) for part in self.parts if bool(part.where.any())]

    def alone(self, prompt: int, row: int, rows: int) -> list[Set]:
        """The edits of one prompt's version, for a batch of `rows` rows in which that prompt is `row`."""
        own = [
            replace(part, values=part.values[prompt].expand(rows, *part.values.shape[1:]),
                    where=part.where[prompt].expand(rows, -1), moved=None)
            for part in self.parts if bool(part.where[prompt].any())
        ]  # fmt: skip
        return [replace(_edit(part), rows=(row,)) for part in own]


@dataclass(frozen=True, eq=False)
class Reads:
    """What of the logits is needed: columns of the inputs [prompt, read] and of the vocabulary."""

    positions: Tensor
    columns: tuple[int, ...] | None

    def of(self, logits: Tensor, kept: Tensor | None = None) -> Tensor:
        """Those cells of full logits, or of the logits of `kept` columns: [prompt, read, column]."""
        rows = torch.arange(len(self.positions))[:, None]
        at = self.positions if kept is None else torch.searchsorted(kept, self.positions.contiguous())
        found = logits[:, None] if logits.ndim == 2 else logits[rows, at]
        if self.columns and not 0 <= min(self.columns) <= max(self.columns) < found.shape[-1]:
            worst = max(self.columns) if min(self.columns) >= 0 else min(self.columns)
            raise InputsError(f"a metric reads logit {worst}, and there are logits from 0 to {found.shape[-1] - 1}.")
        return found if self.columns is None else found[..., list(self.columns)]

    def take(self, prompts: Sequence[int]) -> Reads:
        """The reads of these prompts."""
        return Reads(self.positions[list(prompts)], self.columns)


@dataclass(frozen=True, eq=False)
class Answer:
    """One cell's logits [prompt, read, column] with those of unchanged rows computed with them; `changed` [prompt]."""

    number: int
    logits: Tensor
    unchanged: Tensor
    changed: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SetUnits(Set):
    """Put values at some indices of the last axis, the value being that of the whole axis."""

    units: tuple[int, ...] = ()

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        new, index = super().change(x, valid), torch.tensor(self.units, device=x.device)
        return x.index_copy(-1, index, new.index_select(-1, index))


def _edit(cell: Cell) -> Set:
    axis = 2 if cell.site.component in ("pattern", "scores") else 1
    if cell.where.shape != (cell.values.shape[0], cell.values.shape[axis]):
        raise InputsError(
            f"{cell.site}: values for {[cell.values.shape[0], cell.values.shape[axis]]} positions, but positions"
            f" {list(cell.where.shape)}."
        )
    values = cell.values
    if cell.site.heads is not None:
        values = values.index_select(3 - axis, torch.tensor(cell.site.heads, device=values.device))
    where = None if bool(cell.where.all()) else cell.where
    if cell.units is None:
        return Set(str(cell.site), values, positions=where)
    return SetUnits(str(cell.site), values, positions=where, units=cell.units)


def differs(base: Tensor, source: Tensor, heads: tuple[int, ...] | None, *, pattern: bool = False) -> Tensor:
    """[prompt, position] where two recordings of a site differ at all; of a pattern, [prompt, query]."""
    gap = base != source
    if pattern:
        gap = gap.transpose(1, 2)
    gap = gap if heads is None else gap[:, :, list(heads)]
    return gap.flatten(2).any(-1)


def rows_of(kwargs: Mapping[str, Any], x: Inputs, prompts: Sequence[int]) -> dict[str, Any] | None:
    """The arguments for these prompts of a batch, as a batch; None where it is not certain what belongs to whom."""
    tensors = {name: value for name, value in kwargs.items() if torch.is_tensor(value)}
    known = TEXT if "input_ids" in tensors else {*TEXT, "pixel_values", "input_features"}
    if not set(tensors) <= known or any(len(value) != x.batch for value in tensors.values()):
        return None
    if "position_ids" in tensors and tensors["position_ids"].ndim != 2:
        return None
    index = torch.tensor(list(prompts))
    return {**kwargs, **{name: value[index.to(value.device)] for name, value in tensors.items()}}
