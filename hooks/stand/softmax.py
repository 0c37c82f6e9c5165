"""The model's own softmax with changes at its stages, as head programs: fused, in blocks of rows, or number by number.

Changes of one head act together, whoever made them and in whatever order: on its keys and values, on what it sees, on
scores and weights in the kernels' stages (`interp.kernels.edits`), and last on the numbers of its pattern. What they
come to is one program: `Fused` for what a kernel can do, `Streamed` where heads see the first and the latest keys only,
`Dense` where numbers of an N x N pattern are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.near import Near, attended, seen_near, together
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import HeadProgram
from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.cpu.tiles import pattern, scores


@dataclass(frozen=True, eq=False)
class Numbers:
    """A change of the pattern or the scores themselves, [b, head, row, key], of some heads."""

    component: str
    heads: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class OwnKV:
    """A change of k or v [b, key, head, d] for single query heads, which then no longer share their group's."""

    component: str
    heads: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Changes:
    """What is done to the softmax of a call's heads; heads are numbered as in the call."""

    edits: tuple[kernel.Edit, ...] = ()
    nears: tuple[Near, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    own: tuple[OwnKV, ...] = ()

    def __add__(self, other: Changes) -> Changes:
        return Changes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def numbered(self) -> frozenset[int]:
        """The heads of which numbers are changed, so that only their pattern itself says how they attend."""
        return frozenset(head for change in self.numbers for head in change.heads)

    @property
    def bound(self) -> frozenset[int]:
        """The heads that are computed at once, since one change is of all of its heads."""
        return self.numbered | {head for change in self.own for head in change.heads}

    def whole(self, heads: Iterable[int]) -> tuple[int, ...]:
        """These heads, and those that a change of theirs is of as well."""
        found = list(dict.fromkeys(heads))
        for some in [c.heads for c in self.numbers] + [c.heads for c in self.own]:
            if set(some) & set(found):
                found += [head for head in some if head not in found]
        return tuple(found)

    def of(self, heads: Sequence[int]) -> Changes:
        """Those that concern some heads."""
        some = set(heads)
        return Changes(
            tuple(edit for edit in self.edits if edit.heads is None or some & set(edit.heads)),
            tuple(near for near in self.nears if some & set(near.heads)),
            tuple(change for change in self.numbers if some & set(change.heads)),
            tuple(change for change in self.own if some & set(change.heads)),
        )

    def programs(self, heads: Sequence[int]) -> list[tuple[tuple[int, ...], Changed]]:
        """The programs that all of it comes to, each with heads that it computes together."""
        bound = tuple(head for head in heads if head in self.bound)
        found: list[tuple[tuple[int, ...], Changed]] = []
        if bound:
            found.append((bound, program(self.of(bound))))
        for some, near in together([head for head in heads if head not in self.bound], self.nears):
            found.append((some, Fused(self.of(some)) if near is None else Streamed(self.of(some), near=near)))
        return found


@runtime_checkable
class Changed(HeadProgram, Protocol):
    """A program that is the model's own softmax with changes, and can take more of them."""

    @property
    def changes(self) -> Changes: ...

    def scores(self, part: Part) -> Tensor:
        """What enters the softmax [example, head, row, key] of the rows asked for."""
        ...


@dataclass(frozen=True, eq=False)
class Fused:
    """Changes that a kernel does on the way."""

    changes: Changes = Changes()

    def z(self, part: Part) -> Tensor:
        own, edits = onto(part, self.changes)
        z = attend(own.q, own.k, own.v, edits=edits, **own.arguments).z
        assert z is not None
        return z

    def pattern(self, part: Part) -> Tensor:
        own, edits = onto(part, self.changes)
        return pattern(own.q, own.k, rows=own.rows, edits=edits, **own.arguments)

    def scores(self, part: Part) -> Tensor:
        own, edits = onto(part, self.changes)
        early = [e for e in edits if e.stage <= kernel.MaskKeys.stage]
        arguments = {name: value for name, value in own.arguments.items() if name != "sinks"}
        return scores(own.q, own.k, rows=own.rows, edits=early, **arguments)


@dataclass(frozen=True, eq=False)
class Streamed(Fused):
    """Heads that see the first keys and the latest ones, in time and memory linear in length."""

    near: Near = field(kw_only=True)

    def z(self, part: Part) -> Tensor:
        own, edits = onto(part, self.changes)
        return attended(own, self.near, edits)


@dataclass(frozen=True, eq=False)
class Dense:
    """Changes of the numbers themselves, after those that a kernel does: N x N for these heads, which is what was asked
    for."""

    changes: Changes

    def z(self, part: Part) -> Tensor:
        own, _ = onto(part, self.changes)
        return own.read(self.pattern(replace(part, rows=None)))

    def pattern(self, part: Part) -> Tensor:
        of_scores = [change for change in self.changes.numbers if change.component == "scores"]
        of_pattern = [change for change in self.changes.numbers if change.component == "pattern"]
        weights = self._softmax(part) if of_scores else self._fused.pattern(replace(part, rows=None))
        return _rows(_changed(weights, part.heads, of_pattern), part.rows)

    def scores(self, part: Part) -> Tensor:
        return _rows(self._scores(part), part.rows)

    @property
    def _fused(self) -> Fused:
        return Fused(replace(self.changes, numbers=()))

    def _scores(self, part: Part) -> Tensor:
        of_scores = [change for change in self.changes.numbers if change.component == "scores"]
        return _changed(self._fused.scores(replace(part, rows=None)), part.heads, of_scores)

    def _softmax(self, part: Part) -> Tensor:
        if part.sinks is not None:
            raise EditError("scores of a model with learned sinks cannot be edited; edit the pattern.")
        late = [e for e in onto(part, self.changes)[1] if e.stage > kernel.MaskKeys.stage]
        if late:
            raise EditError(
                f"scores and {type(late[0]).__name__} cannot be edited at one head in one run: the first acts before"
                " the softmax, the second moves weights after it. Edit the pattern instead of the scores."
            )
        return part.softmax(self._scores(part))


def program(changes: Changes) -> Changed:
    """The program that some changes are on all heads at once."""
    return Dense(changes) if changes.numbers else Fused(changes)


def onto(part: Part, changes: Changes) -> tuple[Part, list[kernel.Edit]]:
    """The part with keys, values and mask as the changes leave them, and the edits that a kernel does, numbered as its
    heads are."""
    for change in changes.own:
        part = _with_own(part, change)
    seen = seen_near(part.mask, part.heads, changes.nears, part.k.shape[2])
    some = changes.of(part.heads).edits
    return replace(part, mask=seen), [_numbered_as(edit, part.heads) for edit in some]


def _with_own(part: Part, change: OwnKV) -> Part:
    if set(change.heads) - set(part.heads):
        raise EditError("an edit of k or v changes other heads than those in heads=: leave heads= out.")
    at = torch.tensor([part.heads.index(h) for h in change.heads], device=part.q.device)
    part = replace(part, k=part.keys, v=part.values)
    old = part.k if change.component == "k" else part.v
    new = old.index_copy(1, at, change.change(old[:, at].transpose(1, 2)).transpose(1, 2))
    return replace(part, k=new) if change.component == "k" else replace(part, v=new)


def _numbered_as(edit: kernel.Edit, heads: tuple[int, ...]) -> kernel.Edit:
    """The same edit where only these heads are computed."""
    mine = range(len(heads)) if edit.heads is None else [heads.index(h) for h in edit.heads if h in heads]
    return replace(edit, heads=None if len(set(mine)) == len(heads) else tuple(mine))  # type: ignore[type-var]


def _changed(value: Tensor, heads: tuple[int, ...], changes: Sequence[Numbers]) -> Tensor:
    """Scores or weights after changes of their own; a key that was hidden stays hidden from changed scores."""
    for change in changes:
        at = torch.tensor([heads.index(h) for h in change.heads], device=value.device)
        old = value[:, at]
        new = change.change(old).to(value.dtype)
        value = value.index_copy(1, at, new.masked_fill(old.isneginf(), -torch.inf))
    return value


def _rows(value: Tensor, rows: Tensor | None) -> Tensor:
    return value if rows is None else value[:, :, rows]


def of_example(changes: Changes, number: int) -> Changes:
    """The same changes for one example: their rows and key sets are kept per example."""
    return replace(
        changes,
        edits=tuple(_edit_of(edit, number) for edit in changes.edits),
        nears=tuple(
            replace(near, end=near.end[number : number + 1], rows=_row_of(near.rows, number)) for near in changes.nears
        ),
    )


def _edit_of(edit: kernel.Edit, number: int) -> kernel.Edit:
    own = {f.name: _row_of(getattr(edit, f.name), number) for f in fields(edit) if f.init}  # type: ignore[arg-type]
    return replace(edit, **own)  # type: ignore[type-var]


def _row_of(value: Any, number: int) -> Any:
    per_example = torch.is_tensor(value) and value.dtype == torch.bool and value.ndim == 2 and len(value) > 1
    return value[number : number + 1] if per_example else value
