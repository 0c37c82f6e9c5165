"""From what a user writes for positions to a mask of real tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.labels import CODE, Roles

PLACES = ("all", "first", "last", "prompt", "continuation", "last_prompt")
Mask = Bool[Tensor, "batch position"]


@dataclass(frozen=True)
class Span:
    """A stretch of tokens per row, `rows[i] = (start, end)`; None where the row has none."""

    rows: tuple[tuple[int, int] | None, ...]
    """The first column and the column after the last one, row by row; None where a row has none."""
    text: str = ""
    """The text of the tokens, where it is known."""

    def first(self) -> Span:
        """Only the first token of each stretch."""
        return Span(tuple(row and (row[0], row[0] + 1) for row in self.rows), self.text)

    def last(self) -> Span:
        """Only the last token of each stretch."""
        return Span(tuple(row and (row[1] - 1, row[1]) for row in self.rows), self.text)

    def __str__(self) -> str:
        shown = ", ".join(f"row {i}: {row[0]}:{row[1]}" for i, row in enumerate(self.rows) if row)
        return f"{self.text!r} at {shown}"


def resolve(spec: Any, valid: Mask, roles: Roles, continuation: Sequence[int] | None = None) -> Mask:
    """The mask that a specification means; selecting nothing is an error."""
    if isinstance(spec, str):
        found = _named(spec, valid, roles, continuation)
    elif isinstance(spec, Span):
        found = _spans(spec, valid)
    elif isinstance(spec, Tensor) and spec.dtype == torch.bool:
        found = _boolean(spec, valid)
    else:
        found = _columns(spec.tolist() if isinstance(spec, Tensor) else spec, valid)
    if not found.any():
        said = f"mask {list(spec.shape)}" if isinstance(spec, Tensor) and spec.ndim > 1 else repr(spec)
        raise InputsError(f"positions {said} select nothing; these inputs have {_present(roles)}")
    return found


def real(valid: Mask, shape: Sequence[int], what: object) -> Bool[Tensor, "row column"]:
    """Which values of `what`, [row, position] of this shape, are real, from which of a tower's positions are.

    Where the two have other shapes (windows, images folded into rows) all are real if the tower has no padding at all;
    else it is not known, and refused.
    """
    if valid.shape == torch.Size(shape):
        return valid
    if bool(valid.all()):
        return torch.ones(*shape, dtype=torch.bool, device=valid.device)
    raise InputsError(
        f"{what} has {list(shape)} [row, position] here, but its tower's inputs have {list(valid.shape)}, some of them"
        " padding: which of these are real is not known; run inputs without padding."
    )


def _present(roles: Roles) -> str:
    names = [name for name, code in CODE.items() if name != "pad" and bool((roles.kind == code).any())]
    return ", ".join([*names, *(tag for tag, mask in roles.tags.items() if bool(mask.any()))])


def _boolean(spec: Tensor, valid: Mask) -> Mask:
    if spec.shape not in (valid.shape, valid.shape[1:]):
        raise InputsError(f"a mask of positions has shape {tuple(valid.shape)}, got {tuple(spec.shape)}")
    return spec.to(valid.device) & valid


def named(spec: str, roles: Roles) -> bool:
    """Whether a word is a role or a place."""
    return spec in PLACES or spec.partition(":")[0] in roles.names()


def _named(spec: str, valid: Mask, roles: Roles, continuation: Sequence[int] | None) -> Mask:
    if spec in PLACES:
        return _place(spec, valid, continuation)
    name, colon, number = spec.partition(":")
    if name not in roles.names():
        near = get_close_matches(name, (*roles.names(), *PLACES), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        there = ", ".join((*roles.names(), *PLACES))
        raise InputsError(f"no role {name!r}; {hint}There are {there}, and any text that occurs once in every row")
    found = roles.where(name).to(valid.device) & valid
    if not colon:
        return found
    if not number.isdecimal():
        raise InputsError(f"{spec!r}: write the number of the image after the colon, as in '{name}:0'")
    return found & (roles.image == int(number))


def _place(spec: str, valid: Mask, continuation: Sequence[int] | None) -> Mask:
    part = valid
    if spec in ("prompt", "continuation", "last_prompt"):
        if continuation is None:
            if spec == "continuation":
                raise InputsError("these inputs have no continuation: prepare them with continuation=")
            continuation = [valid.shape[1]] * len(valid)
        column = torch.arange(valid.shape[1], device=valid.device)
        answer = column >= torch.tensor(list(continuation), device=valid.device)[:, None]
        part = valid & (answer if spec == "continuation" else ~answer)
    count = part.cumsum(-1)
    if spec == "first":
        return part & (count == 1)
    return part & (count == count[:, -1:]) if spec in ("last", "last_prompt") else part.clone()


def _spans(spec: Span, valid: Mask) -> Mask:
    if len(spec.rows) != len(valid):
        raise InputsError(f"a span over {len(spec.rows)} rows does not fit a batch of {len(valid)}")
    out = torch.zeros_like(valid)
    for index, stretch in enumerate(spec.rows):
        if stretch is not None:
            start, end = stretch
            if not 0 <= start < end <= valid.shape[1]:
                raise InputsError(f"span {start}:{end} in row {index} is out of range: the length is {valid.shape[1]}")
            out[index, start:end] = True
    return out & valid


def _columns(spec: Any, valid: Mask) -> Mask:
    per_row = isinstance(spec, Sequence) and len(spec) > 0 and not isinstance(spec, range) and _is_list(spec[0])
    if per_row and len(spec) != len(valid):
        raise InputsError(f"{len(spec)} lists of positions for a batch of {len(valid)}; give one list per row")
    out = torch.zeros_like(valid)
    for row in range(len(valid)):
        chosen = spec[row] if per_row else spec
        if isinstance(chosen, (slice, range)):
            out[row] = _stretch(chosen, valid[row])
        else:
            for index in _numbers(chosen):
                out[row, _column(index, row, valid[row])] = True
    return out


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, slice)) and not isinstance(value, str)


def _numbers(chosen: Any) -> list[int]:
    items = chosen if isinstance(chosen, Iterable) and not isinstance(chosen, str) else [chosen]
    try:
        return [operator.index(item) for item in items if not _refuse_bool(item)]
    except TypeError:
        raise InputsError(
            f"positions {chosen!r} are not understood; give a role, a Span, numbers, a slice or a mask"
        ) from None


def _refuse_bool(item: Any) -> bool:
    if isinstance(item, bool):
        raise InputsError("a list of True and False is not understood; make it a torch.bool tensor")
    return False


def _end(valid: Tensor) -> int:
    return int(valid.nonzero()[-1]) + 1


def _column(index: int, row: int, valid: Tensor) -> int:
    """A column; a negative number counts from the row's last real token."""
    length, end = len(valid), _end(valid)
    column = index if index >= 0 else end + index
    if not 0 <= column < length:
        raise InputsError(f"position {index} is out of range: row {row} has {end} columns up to its last token")
    if not valid[column]:
        start = int(valid.nonzero()[0])
        raise InputsError(
            f"position {index} is padding in row {row}, whose tokens are columns {start} to {end - 1}; "
            f"use a list per row, a negative number, 'first' or a span"
        )
    return column


def _stretch(chosen: slice | range, valid: Tensor) -> Tensor:
    """The real columns of a slice, whose negative bounds count from the last real token."""
    if isinstance(chosen, range):
        columns = [index + _end(valid) if index < 0 else index for index in chosen]
    else:
        columns = list(range(*chosen.indices(_end(valid))))
    out = torch.zeros_like(valid)
    out[[column for column in columns if 0 <= column < len(valid)]] = True
    return out & valid
