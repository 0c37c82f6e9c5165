"""What a plain run of one tower leaves to go on from: what each block was called with, and what its attention saw.

A block is called again with the arguments it had: for other residuals of the same rows, once or several times over, or
for some of their tokens, as of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Layer, Tower
from interp.hooks.drive.packed import Shared
from interp.hooks.errors import ModelError


class CannotDrive(ModelError):
    """A tower whose blocks cannot be run one by one."""

    def __init__(self, tower: Tower, reason: str) -> None:
        super().__init__(f"the blocks of the tower {tower.name!r} cannot be run one by one: {reason}.")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Crossing:
    """A block's attention to another tower, whose keys and values no change in this tower moves."""

    layer: Layer
    shared: Shared


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One block as it was called, but for its residual and caches, which would give it its own keys a second time."""

    layer: Layer
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attended: Shared | None = None
    crossing: Crossing | None = None
    output: Any = None

    @classmethod
    def of(cls, layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BlockCall:
        """As it was called."""
        kept = [None if n == key_of(layer) else _no_cache(value) for n, value in enumerate(args)]
        named = {name: None if name == key_of(layer) else _no_cache(value) for name, value in kwargs.items()}
        return cls(layer, tuple(kept), named)

    @property
    def shared(self) -> Shared:
        """What its attention saw."""
        assert self.attended is not None
        return self.attended

    def arguments(
        self, hidden: Tensor, change: Callable[[str | int, Any], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments with this residual, the others changed."""
        key = key_of(self.layer)
        args = tuple(hidden if n == key else change(n, value) for n, value in enumerate(self.args))
        return args, {name: hidden if name == key else change(name, value) for name, value in self.kwargs.items()}


@runtime_checkable
class Whereabouts(Protocol):
    """Some tokens of a run, by prompt and column."""

    @property
    def prompts(self) -> Tensor: ...

    @property
    def columns(self) -> Tensor: ...


@dataclass(eq=False)
class Recording:
    """A plain run: its blocks, the residual each of them began with, the last residual, the logits."""

    tower: Tower
    blocks: tuple[BlockCall, ...]
    entered: dict[int, Tensor]
    left: Tensor
    """The last block's output."""
    logits: Tensor
    kept: Tensor | None
    """The columns that the logits are of; None for all."""
    rows: int
    length: int

    def block(self, layer: int) -> BlockCall:
        """The call of the block of a layer."""
        return next(block for block in self.blocks if block.layer.index == layer)

    def cut(self, depth: int | None) -> Recording:
        """The same up to a block whose output is what is read further on."""
        if depth is None or depth >= len(self.blocks):
            return self
        return replace(self, blocks=self.blocks[:depth], left=self.entered[self.blocks[depth].layer.index])

    def arguments(
        self, block: BlockCall, hidden: Tensor, at: Whereabouts | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments for a residual of all rows, each as often as it has versions of them, or of the tokens at
        a place [1, token, d], whose masks are left to the attention."""
        if at is not None:
            return block.arguments(
                hidden, lambda name, value: None if self._masks(block, name, value) else self.of_tokens(value, at)
            )
        times = len(hidden) // self.rows
        if times == 1:
            return block.arguments(hidden, lambda _, value: value)
        return block.arguments(hidden, lambda _, value: _deep(value, lambda x: self._repeated(x, times)))

    def _masks(self, block: BlockCall, name: str | int, value: Any) -> bool:
        """Whether an argument says which keys are seen, or is added to the scores."""
        if isinstance(name, str) and "mask" in name:
            return True
        keys = [self.length, *([] if block.crossing is None else [block.crossing.shared.k.shape[2]])]
        four = torch.is_tensor(value) and value.ndim == 4
        return four and value.shape[2] in (1, self.length) and value.shape[3] in keys

    def _rows_axis(self, x: Tensor) -> int | None:
        """The axis of the rows in front of that of the positions, of an argument that has both."""
        axes = range(1, x.ndim)
        return next((a - 1 for a in axes if x.shape[a] == self.length and x.shape[a - 1] in (1, self.rows)), None)

    def of_tokens(self, value: Any, at: Whereabouts) -> Any:
        """What has an entry per position, at these tokens."""
        return _deep(value, lambda x: self._of_tokens(x, at))

    def _of_tokens(self, x: Tensor, at: Whereabouts) -> Tensor:
        if x.ndim == 1 and len(x) == self.length:
            return x[at.columns]
        axis = self._rows_axis(x)
        if axis is None:
            return x
        by_row = x.movedim((axis, axis + 1), (0, 1))
        prompts = at.prompts if len(by_row) == self.rows else torch.zeros_like(at.prompts)
        return by_row[prompts, at.columns][None].movedim((0, 1), (axis, axis + 1))

    def _repeated(self, x: Tensor, times: int) -> Tensor:
        """What has an entry per row, for several versions of the rows."""
        first = x.ndim > 2 or (x.ndim == 2 and x.shape[1] == self.length)
        axis = 0 if first and len(x) == self.rows else self._rows_axis(x)
        if self.rows == 1 or axis is None or x.shape[axis] != self.rows:
            return x
        return x.repeat([times if a == axis else 1 for a in range(x.ndim)])


def residual(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The residual among a block's arguments."""
    key = key_of(layer)
    found: Tensor = kwargs[key] if isinstance(key, str) else args[key]
    return found


def key_of(layer: Layer) -> str | int:
    """Which argument of a block the residual is."""
    return layer.ports["resid_pre"].key or 0


def _deep(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensors in an argument changed."""
    if isinstance(value, (tuple, list)):
        return tuple(_deep(one, change) for one in value)
    return change(value) if torch.is_tensor(value) else value


def _no_cache(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_no_cache, value))
    return None if hasattr(value, "get_seq_length") else value
