"""Rows of one sequence that look at another: a decoder's tokens and the source words, frames of sound or patches they
are about. Which keys belong to which token is given, as spans, by whoever knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.heads.kinds.page import Page
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs

Pair: TypeAlias = "tuple[Any, Any]"
Spans: TypeAlias = "Sequence[Mapping[Any, Any] | Sequence[Pair]]"


@dataclass(frozen=True, eq=False)
class Crossing(Page):
    """A page of rows with the keys of another sequence."""

    keys: Tensor
    """[example, key], which keys are real."""
    wanted: Tensor
    """[example, column, key], the keys that the token of a column is about."""
    seconds: float | None
    """How long a key lasts, where keys are frames of sound."""

    @classmethod
    def between(cls, rows: Inputs, keys: Inputs, columns: Tensor, spans: Spans | None) -> Crossing:
        """The page of cross-attention between two towers' inputs; `columns` are the positions that are keys."""
        page = Page.of(rows, causal=False, picture=False)
        wanted = torch.zeros(len(page.valid), page.length, keys.length, dtype=torch.bool)
        if spans is not None:
            _check(spans, len(wanted))
            for row, pairs in enumerate(spans):
                for here, there in read_pairs(rows, keys, row, pairs):
                    wanted[row] |= here[:, None] & there[None]
        real, kept = keys.valid.cpu(), columns.cpu()
        return cls(**vars(page), keys=real[:, kept], wanted=wanted[:, :, kept], seconds=keys.roles.seconds)

    def said(self, key: int) -> str:
        """A key in words."""
        return str(key) if self.seconds is None else f"{key * self.seconds:.2f} s"


def _check(spans: Spans, batch: int) -> None:
    if isinstance(spans, (str, Mapping)) or len(spans) != batch:
        raise InputsError(
            f"spans= are the pairs (token, keys) of each example, here {batch}:"
            ' [[("cat", (0.3, 0.6)), ...], ...], or a dict a example; got ' + f"{spans!r:.80}"
        )


def read_pairs(
    rows: Inputs, keys: Inputs, row: int, pairs: Mapping[Any, Any] | Sequence[Pair]
) -> Iterable[tuple[Tensor, Tensor]]:
    """The columns of a token and the keys it is about, each as a mask; the n-th mention of a word is its n-th
    occurrence."""
    mentioned: Counter[str] = Counter()
    for what, where in pairs.items() if isinstance(pairs, Mapping) else pairs:
        occurrence = 1
        if isinstance(what, str):
            mentioned[what] += 1
            occurrence = mentioned[what]
        yield _place(rows, row, what, occurrence), _place(keys, row, where, 1)


def _place(x: Inputs, row: int, spec: Any, occurrence: int) -> Tensor:
    """One row's real positions [position]: words, a role, a column, (first, one past the last), (seconds, seconds)."""
    if isinstance(spec, str):
        if x.texts is None:
            return x.mask(spec)[row].cpu()
        first, end = x.find(spec, occurrence, row=row).rows[row] or (0, 0)
    elif isinstance(spec, tuple) and len(spec) == 2 and any(isinstance(edge, float) for edge in spec):
        first, end = x.roles.during(*spec)
    elif isinstance(spec, tuple) and len(spec) == 2:
        first, end = spec
    elif isinstance(spec, int):
        first, end = spec, spec + 1
    else:
        raise InputsError(
            f"{spec!r} is no place: give a text, a column, (first, one past the last) or (start, end) in seconds."
        )
    found = torch.zeros(x.length, dtype=torch.bool)
    if not 0 <= first < end <= x.length:
        raise InputsError(f"{spec!r} is out of range in example {row}: there are {x.length} positions.")
    found[first:end] = True
    found &= x.valid[row].cpu()
    if not bool(found.any()):
        raise InputsError(f"{spec!r} of example {row} is padding throughout.")
    return found
