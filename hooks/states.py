"""States of head programs while a model generates: sums that grow key by key and are not taken anew in every step.

A program that has `start`, `grow` and `answer` (`hooks/stand/program.py`) goes on from its state wherever a call adds
one token to a cache: the first such call starts it from the keys of the cache, every later one adds its own key. There
is one state for each edit and layer, of all rows of the batch, as large after many tokens as after few. The cache goes
on storing keys and values, and whatever stores them, they are what a state is checked against: it is used only where
the cache holds, untouched, what the state was left with, and where the rows see all of that and their own key. Where
rows were reordered (beams), dropped or cut off, where a window slides, where k or v are edited, or where the call's
keys are not the cache's own tensors (copies for grouped heads, quantised or static caches), z comes from all keys of
the call instead, and the next step that can starts a new state: the same numbers, at the cost of reading the keys.
States are those of one thread, and are gone with the session.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from interp.hooks.stand.call import Call
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import Recurrent
from interp.kernels.masks.symbols import Mask, as_mask

Name = tuple[int, int, int]
"""The thread, an edit at a layer, and which of its programs."""


@dataclass(frozen=True, eq=False)
class _Before(Mask):
    """What the last query of a mask sees, for one that is `new` keys earlier."""

    mask: Mask
    new: int

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return self.mask.visible(i + self.new, j)

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        return self.mask.additive(i + self.new, j)


@dataclass(frozen=True)
class _Held:
    """A state, and the cache that it belongs to."""

    state: Any
    keys: weakref.ref[Tensor]
    version: int
    seen: Tensor
    """[1 or example, 1 or head], the sign of which keys are in it."""


class States:
    """The states of one session."""

    def __init__(self) -> None:
        self._held: dict[Name, _Held] = {}

    def begin(self, cache: Any) -> None:
        """A forward pass of the whole model starts: states of this thread stay whose cache is as they left it."""
        stored = {id(keys): keys for keys, _ in stored_in(cache)}
        for name, held in list(self._held.items()):
            keys = held.keys()
            whole = keys is not None and id(keys) in stored and _version(keys) == held.version
            if name[0] == get_ident() and not whole:
                del self._held[name]

    def clear(self) -> None:
        """Forget them all."""
        self._held.clear()

    def carried(self, program: Recurrent, name: tuple[int, int], call: Call, cache: Any, *, new: int) -> Carried | None:
        """The program with its state, in a call of one query that adds `new` keys to a cache, none in cross-attention;
        None where the call's keys and values are not those that the cache stores."""
        if call.q.shape[2] != 1 or not any(k is call.k and v is call.v for k, v in stored_in(cache)):
            return None
        return Carried(program, self, (get_ident(), *name), call.k, new)

    def hold(self, name: Name, held: _Held) -> None:
        """Keep a state until its next call."""
        self._held[name] = held

    def taken(self, name: Name) -> _Held | None:
        """The state that was kept, if there is one."""
        return self._held.pop(name, None)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True, eq=False)
class Carried:
    """A head program that goes on from its state."""

    program: Recurrent
    states: States
    name: Name
    keys: Tensor
    """As the cache stores them."""
    new: int

    def z(self, part: Part) -> Tensor:
        seen = _seen(part)
        if self.new and not bool(seen[..., -1].all()):
            return self.program.z(part)
        last = replace(part, k=part.k[:, :, -1:], v=part.v[:, :, -1:], mask=None)
        state = self._before(part, _sign(seen[..., : seen.shape[-1] - self.new]))
        state = self.program.grow(state, last) if self.new else state
        self.states.hold(self.name, _Held(state, weakref.ref(self.keys), _version(self.keys), _sign(seen)))
        return self.program.answer(state, last)

    def _before(self, part: Part, seen: Tensor) -> Any:
        """The state of the keys before the new one."""
        held = self.states.taken(self.name)
        if held is not None and torch.equal(held.seen, seen):
            return held.state
        length = part.k.shape[2] - self.new
        mask = _Before(as_mask(part.mask), self.new)
        return self.program.start(replace(part, k=part.k[:, :, :length], v=part.v[:, :, :length], mask=mask))

    def pattern(self, part: Part) -> Tensor | None:
        return self.program.pattern(part)


def stored_in(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The keys and values that a cache of transformers stores, layer by layer; none of other caches."""
    for one in (getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")):
        if one is not None:
            yield from stored_in(one)
    for layer in getattr(cache, "layers", None) or ():
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if torch.is_tensor(keys) and torch.is_tensor(values):
            yield keys, values


def _seen(part: Part) -> Tensor:
    """Bool [1 or example, 1 or head, 1, key] of the one query."""
    keys = torch.arange(part.k.shape[2], device=part.q.device)
    return as_mask(part.mask).visible(keys[-1:], keys)


def _sign(seen: Tensor) -> Tensor:
    """Int [...]: a number that says which keys are seen, without keeping them; that of one key more is another."""
    at = torch.arange(1, seen.shape[-1] + 1, device=seen.device) * 0x9E3779B97F4A7C1
    mixed = (at ^ (at >> 29)) * 0x3F58476D1CE4E5B9
    return ((mixed ^ (mixed >> 32)) * seen).sum(-1)[..., 0]


def _version(x: Tensor) -> int:
    """How often it was written into."""
    return 0 if x.is_inference() else x._version
