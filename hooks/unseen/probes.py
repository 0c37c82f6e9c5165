"""Change some numbers that a matrix makes, and see what another one reads then.

One plain pass notes the matrices of a place in the order they are entered. A probe is a pass that ends where the second
matrix is entered: what comes after it is not computed. In all probes every matrix before that one makes random numbers
instead of its own, since values that are all alike would hide how they are weighed, and changed numbers are other
random ones, not shifted, since a softmax does not see what is added to all keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import View, split
from interp.hooks.stand.output import exchanged, outer_tensor


@dataclass
class Matrix:
    """A module of a place that multiplies by a matrix: when it was entered, what it read and made."""

    name: str
    module: nn.Module
    entered: int = -1
    times: int = 0
    read: Tensor | None = None
    made: Tensor | None = None

    @property
    def once(self) -> bool:
        """Whether it ran once, so that what it made is one tensor."""
        return self.times == 1


class _Enough(Exception):
    """What was wanted has been read."""


class Probes:
    """The matrices of one place, and what depends on what among them."""

    def __init__(self, root: nn.Module, inputs: Mapping[str, Any], place: str) -> None:
        self.root, self.inputs, self.place = root, dict(inputs), place
        self.batch = next((len(x) for x in self.inputs.values() if torch.is_tensor(x) and x.ndim), 1)
        every = [Matrix(name, module) for name, module in _matrices(root.get_submodule(place))]
        self._watch(every)
        self.matrices = sorted((m for m in every if m.times), key=lambda m: m.entered)
        self._plain: dict[str, Tensor] = {}

    def role(self, matrix: Matrix, view: View, out: Matrix, heads: int, head: int) -> str | None:
        """What one head of a part may be by the columns that its first number moves: `v`, `qk`, or neither."""
        size = self._reads(out).shape[-1] // heads

        def first(x: Tensor) -> None:
            part = split(x, view, heads)
            part[..., head, 0] = _other(part[..., head, 0])

        moved = self._moved(matrix, out, first).any(0).unflatten(0, (heads, size))
        if bool(moved[[h for h in range(heads) if h != head]].any()):
            return None
        if bool(moved[head].all()):
            return "qk"
        return "v" if bool(moved[head, 0]) and int(moved[head].sum()) == 1 else None

    def rows(self, matrix: Matrix, view: View, out: Matrix, heads: int) -> int:
        """How many rows a part moves if it is changed at one position, at most, of one in the middle and one near the
        start: others may be padding."""
        return max(self._rows(matrix, view, out, heads, start=start) for start in (False, True))

    def _rows(self, matrix: Matrix, view: View, out: Matrix, heads: int, *, start: bool) -> int:
        def one(x: Tensor) -> None:
            part = split(x.flatten(0, -2), view, heads)
            at = min(2, len(part) - 1) if start else len(part) // 2
            part[at] = _other(part[at])

        return int(self._moved(matrix, out, one).any(1).sum())

    def _moved(self, matrix: Matrix, out: Matrix, change: Callable[[Tensor], None]) -> Tensor:
        """Bool [row, column] of what `out` reads: whether it is another number with a matrix's output changed."""
        plain, changed = self._reads(out), self._read(out, matrix, change)
        if changed.shape != plain.shape:
            return torch.ones_like(plain, dtype=torch.bool).flatten(0, -2)
        return (plain != changed).flatten(0, -2)

    def _reads(self, out: Matrix) -> Tensor:
        if out.name not in self._plain:
            self._plain[out.name] = self._read(out)
        return self._plain[out.name]

    def _read(
        self, out: Matrix, matrix: Matrix | None = None, change: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """What `out` reads, with what another makes changed."""
        kept: list[Tensor] = []
        own = get_ident()

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() == own:
                kept.append(_given(args, kwargs).detach().clone())
                raise _Enough

        def other(one: Matrix, seed: int) -> Callable[..., Any]:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                key, made = outer_tensor(output)
                if get_ident() != own or not made.is_floating_point():
                    return None
                made = _noise(made, seed)
                if one is matrix and change is not None:
                    change(made)
                return exchanged(output, key, made)

            return hook

        with ExitStack() as undo, torch.no_grad():
            undo.callback(out.module.register_forward_pre_hook(keep, with_kwargs=True).remove)
            for seed, one in enumerate(self.matrices, 1):
                if one.entered < out.entered:
                    undo.callback(one.module.register_forward_hook(other(one, seed)).remove)
            with suppress(_Enough):
                self.root(**self.inputs)
        return kept[0]

    def _watch(self, matrices: list[Matrix]) -> None:
        """Note what each matrix reads and makes in a plain pass."""
        own, entered = get_ident(), iter(range(10**9))

        def enter(one: Matrix) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if get_ident() == own:
                    read = _given(args, kwargs)
                    one.entered, one.times = next(entered), one.times + 1
                    one.read = read if read.ndim > 1 and read.is_floating_point() else None

            return hook

        def leave(one: Matrix) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                made = outer_tensor(output)[1]
                if get_ident() == own:
                    one.made = made if made.ndim > 1 and made.is_floating_point() else None

            return hook

        with ExitStack() as undo, torch.no_grad():
            for one in matrices:
                undo.callback(one.module.register_forward_pre_hook(enter(one), with_kwargs=True).remove)
                undo.callback(one.module.register_forward_hook(leave(one)).remove)
            self.root(**self.inputs)


def _matrices(place: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that multiply by a matrix, adapters and all; those inside them are theirs."""
    taken: list[str] = []
    for name, module in place.named_modules():
        if not any(name.startswith(one + ".") for one in taken) and _multiplies(module):
            taken.append(name)
            if name:
                yield name, module


def _multiplies(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    weight = getattr(module, "weight", None)
    return hasattr(module, "base_layer") or (torch.is_tensor(weight) and weight.ndim == 2)


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return next((x for x in (*args, *kwargs.values()) if torch.is_tensor(x)), torch.empty(0))


def _noise(x: Tensor, seed: int) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(x.device, x.dtype)


def _other(x: Tensor) -> Tensor:
    """Other numbers."""
    return _noise(x, 0)
