"""What a model is called with, frozen: tensors, which positions are real, what each token is, where text lies.

Idea: everything later asks one object which positions count (`valid`), what they are (`roles`) and where a word is
(`find`), so that no method does its own arithmetic on padding. Positions are columns of the main tower (the decoder of
an encoder-decoder); `tower("encoder")` or `tower("vision")` is the same object for another stack of layers.
Cost: no forward pass. Limits: the tensors are shared with the caller, not copied; 4-d attention masks are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.roles import Roles, roles

Positions: TypeAlias = "str | Span | int | Sequence[int] | Sequence[Sequence[int]] | slice | range | Tensor"


@dataclass(frozen=True)
class Span:
    """A stretch of tokens per row, `rows[i] = (start, end)`; None where the row has none."""

    rows: tuple[tuple[int, int] | None, ...]
    text: str = ""

    def first(self) -> Span:
        """Only the first token of each stretch."""
        return Span(tuple(row and (row[0], row[0] + 1) for row in self.rows), self.text)

    def last(self) -> Span:
        """Only the last token of each stretch."""
        return Span(tuple(row and (row[1] - 1, row[1]) for row in self.rows), self.text)

    def __str__(self) -> str:
        shown = ", ".join(f"row {i}: {row[0]}:{row[1]}" for i, row in enumerate(self.rows) if row)
        return f"{self.text!r} at {shown}"


@dataclass(frozen=True, eq=False, repr=False)
class Inputs:
    """The arguments of one batch and what is known about them; made by `prepare` or `Inputs.of`."""

    kwargs: Mapping[str, Tensor]
    valid: Tensor
    roles: Roles
    tokens: tuple[tuple[str, ...], ...] | None = None
    texts: tuple[str, ...] | None = None
    offsets: tuple[tuple[tuple[int, int], ...], ...] | None = None
    continuation: tuple[int, ...] | None = None
    towers: Mapping[str, Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kwargs", MappingProxyType(dict(self.kwargs)))
        object.__setattr__(self, "towers", MappingProxyType(dict(self.towers)))

    def __reduce__(self) -> tuple[Any, ...]:
        rest = (self.valid, self.roles, self.tokens, self.texts, self.offsets, self.continuation)
        return Inputs, (dict(self.kwargs), *rest, dict(self.towers))

    @classmethod
    def of(cls, kwargs: Mapping[str, Any], *, config: Any = None, tokenizer: Any = None) -> Inputs:
        """Wrap the arguments of a call as they are; ids are never retokenised."""
        tensors = {name: torch.as_tensor(value) for name, value in kwargs.items() if value is not None}
        ids = tensors["input_ids"]
        valid = tensors["attention_mask"].bool() if "attention_mask" in tensors else torch.ones_like(ids).bool()
        return cls(tensors, valid, roles(config, tensors, tokenizer=tokenizer, valid=valid))

    @property
    def batch(self) -> int:
        """Rows."""
        return self.valid.shape[0]

    @property
    def length(self) -> int:
        """Columns, padding included."""
        return self.valid.shape[1]

    def __len__(self) -> int:
        return self.batch

    def tower(self, name: str) -> Inputs:
        """The positions of another tower; the main tower's names give this object."""
        if name in self.towers:
            return self.towers[name]
        if name in ("text", "decoder") or not self.towers:
            return self
        raise InputsError(f"no tower {name!r} in these inputs; they have {', '.join(self.towers)}")

    def valid_of(self, tower: str) -> Tensor:
        """Which positions of a tower are real."""
        return self.tower(tower).valid

    def mask(self, spec: Positions) -> Tensor:
        """The [batch, position] mask a specification stands for."""
        if isinstance(spec, Tensor) and spec.dtype == torch.bool:
            return self._boolean(spec)
        if isinstance(spec, str):
            return self._named(spec)
        if isinstance(spec, Span):
            return self._spans(spec)
        return self._indexed(spec)

    def _boolean(self, spec: Tensor) -> Tensor:
        if spec.shape != self.valid.shape:
            raise InputsError(f"a mask of positions has shape {tuple(self.valid.shape)}, got {tuple(spec.shape)}")
        return spec.to(self.valid.device)

    def _named(self, spec: str) -> Tensor:
        count = self.valid.cumsum(-1)
        simple = {"all": self.valid, "first": self.valid & (count == 1), "last": self.valid & (count == count[:, -1:])}
        if spec in simple:
            return simple[spec].clone()
        name, _, index = spec.partition(":")
        if name not in self.roles.names():
            near = get_close_matches(name, (*self.roles.names(), *simple), n=1)
            raise InputsError(f"no role {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        found = self.roles.where(name) & self.valid
        return found & (self.roles.image == int(index)) if index else found

    def _spans(self, spec: Span) -> Tensor:
        out = torch.zeros_like(self.valid)
        for mask, row in zip(out, spec.rows, strict=True):
            if row is not None:
                mask[row[0] : row[1]] = True
        return out

    def _indexed(self, spec: Any) -> Tensor:
        if isinstance(spec, slice):
            spec = range(*spec.indices(self.length))
        per_row = isinstance(spec, Sequence) and len(spec) > 0 and isinstance(spec[0], Sequence)
        out = torch.zeros_like(self.valid)
        for i in range(self.batch):
            chosen = spec[i] if per_row else spec
            for index in [chosen] if isinstance(chosen, int) else chosen:
                out[i, self._column(int(index), i)] = True
        return out

    def _column(self, index: int, row: int) -> int:
        last = int(self.valid[row].nonzero()[-1])
        column = index if index >= 0 else last + 1 + index
        if not 0 <= column < self.length:
            raise InputsError(f"position {index} is out of range: row {row} has length {self.length}")
        return column

    def find(self, text: str, occurrence: int = 1, *, row: int | None = None) -> Span:
        """Where a piece of text is, by characters."""
        raise NotImplementedError("arrives with the next commit")

    def digest(self) -> str:
        """A sha256 of the data, the same on every machine."""
        total = hashlib.sha256()
        for name, value in sorted({**self.kwargs, "valid": self.valid}.items()):
            array = value.detach().cpu().contiguous()
            total.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
            total.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        return total.hexdigest()

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on another device."""
        moved = {name: value.to(device) for name, value in self.kwargs.items()}
        towers = {name: tower.to(device) for name, tower in self.towers.items()}
        rest = (self.tokens, self.texts, self.offsets, self.continuation)
        return Inputs(moved, self.valid.to(device), self.roles.to(device), *rest, towers)

    def show(self) -> None:
        """Print every position: column, id, token, role."""
        print(self)

    def __repr__(self) -> str:
        return f"Inputs({self.batch} rows of {self.length} positions, {self.roles!r})"
