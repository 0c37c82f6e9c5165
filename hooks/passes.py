"""Which pass of a layer is running, where one module is used as several layers (ALBERT) or is run in a loop.

torch's hooks belong to a module and meet every run of it. A count says which one it is: it begins at 0 with each call
of the model, that is when the outermost module around the counted one is entered, and grows each time the counted one
is entered (or, where one module attends several times in one run, with each attention call). It is each thread's own,
survives calls that fail, and is there only while somebody stands at a pass.

A block that is entered while no model around it runs is either driven by ourselves, who say which pass it is
(`driven`), or run once more on the way back under gradient checkpointing. The latter is given the very residual that
the pass had, which tells the passes apart; where it does not, that is an error.

Limits: a call with more passes than the traced one is an error for those who stand there; in a call with fewer, what
stands at the others does not fire, which sessions say.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Nth
from interp.hooks.errors import ModelError

Live = Callable[[], bool]
"""Whether somebody wants what the current thread runs."""


class _Now(threading.local):
    """One thread's count."""

    def __init__(self) -> None:
        self.around: list[nn.Module] = []
        """The modules around the counted one that are running, outermost first."""
        self.met = 0
        """How often it has been met in this call of the model."""
        self.given: list[weakref.ref[Tensor]] = []
        """By pass, the residual that it was entered with."""


class _Driven(threading.local):
    """By module, the pass that we run it in, in each thread."""

    def __init__(self) -> None:
        self.passes: dict[int, int] = {}


_driven = _Driven()


@contextmanager
def driven(root: nn.Module, nth: Nth | None) -> Iterator[None]:
    """While inside, a module that the current thread runs without the whole model is in this pass."""
    if nth is None:
        yield
        return
    key = id(root.get_submodule(nth.module))
    before = _driven.passes.get(key)
    _driven.passes[key] = nth.number
    try:
        yield
    finally:
        if before is None:
            del _driven.passes[key]
        else:
            _driven.passes[key] = before


class Count:
    """How often one module has run in the current call of the model around it."""

    _lock = threading.RLock()
    _known: ClassVar[weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, bool], Count]]] = weakref.WeakKeyDictionary()
    _attending: ClassVar[Mapping[int, tuple[Count, ...]]] = {}
    """By module, the counts of attention calls; replaced whole, so that it is read without the lock."""

    def __init__(self, root: nn.Module, nth: Nth) -> None:
        self.nth, self.module = nth, weakref.ref(root.get_submodule(nth.module))
        self.now = _Now()
        self.wanting: list[Live] = []
        self._undo = ExitStack()
        if nth.calls:
            self._on_calls()
        for around in _around(root, nth):
            self._on(around.register_forward_pre_hook(self._enter, prepend=True))
            self._on(around.register_forward_hook(self._leave, always_call=True))
        if not nth.calls:
            counted = root.get_submodule(nth.module)
            self._on(counted.register_forward_pre_hook(self._entered, prepend=True, with_kwargs=True))

    def _on(self, handle: Any) -> None:
        self._undo.callback(handle.remove)

    def _on_calls(self) -> None:
        key = id(self.module())
        Count._attending = {**Count._attending, key: (*Count._attending.get(key, ()), self)}
        self._undo.callback(self._off_calls, key)

    def _off_calls(self, key: int) -> None:
        left = tuple(one for one in Count._attending[key] if one is not self)
        others = {other: some for other, some in Count._attending.items() if other != key}
        Count._attending = {**others, key: left} if left else others

    @classmethod
    def watch(cls, root: nn.Module, nth: Nth, live: Live) -> tuple[Count, Callable[[], None]]:
        """The count for a pass of a module, kept until what is returned with it is called."""
        with cls._lock:
            counts = cls._known.setdefault(root, {})
            count = counts.get((nth.module, nth.calls)) or cls(root, nth)
            counts[nth.module, nth.calls] = count
            count.wanting.append(live)
        return count, lambda: cls._forget(root, nth, live)

    @classmethod
    def _forget(cls, root: nn.Module, nth: Nth, live: Live) -> None:
        with cls._lock:
            count = cls._known.get(root, {}).get((nth.module, nth.calls))
            if count is None or live not in count.wanting:
                return
            count.wanting.remove(live)
            if not count.wanting:
                del cls._known[root][nth.module, nth.calls]
                count._undo.close()

    def at(self, number: int) -> bool:
        """Whether this pass is what the current thread runs."""
        held = _driven.passes.get(id(self.module()))
        return number == (self.now.met - 1 if held is None else held)

    def _enter(self, module: nn.Module, _: Any) -> None:
        if not self.now.around:
            self.now.met = 0
            self.now.given = []
        self.now.around.append(module)

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        if any(one is module for one in self.now.around):  # else it was entered before anybody counted
            while self.now.around.pop() is not module:
                pass

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if id(module) in _driven.passes:
            return
        given = next((x for x in (*args, *kwargs.values()) if torch.is_tensor(x) and x.is_floating_point()), None)
        if self.now.around:
            self.now.given += [weakref.ref(given)] if given is not None else []
            self.one_more()
        elif self._wanted():
            self.now.met = 1 + self._again(given)

    def one_more(self) -> None:
        """It is met once more."""
        self.now.met += 1
        if self.now.met > self.nth.of and self._wanted():
            raise ModelError(
                f"{self.nth.module or 'the model'} {'attends' if self.nth.calls else 'runs'} more than {self.nth.of}"
                " times in this call, and in the call that was traced it did so no more: its later passes have no"
                " sites. Trace the model on inputs with as many passes: m.discover(inputs)."
            )

    def _wanted(self) -> bool:
        return any(live() for live in list(self.wanting))

    def _again(self, given: Tensor | None) -> int:
        """Which pass is run once more with this residual, on the way back under gradient checkpointing."""
        known = [ref() for ref in self.now.given]
        found = [n for n, one in enumerate(known) if one is not None and given is not None and _same(one, given)]
        if len(found) != 1:
            raise ModelError(
                f"{self.nth.module} runs outside of a call of the model, so which of its {self.nth.of} passes this is"
                " cannot be told: call the model itself, or switch gradient checkpointing off."
            )
        return found[0]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same memory: what is kept for the way back may be a detached view."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _around(root: nn.Module, nth: Nth) -> list[nn.Module]:
    """The modules on the way from the root to the one that is counted, and that one where its calls are."""
    parts = nth.module.split(".") if nth.module else []
    names = [".".join(parts[:n]) for n in range(len(parts) + nth.calls)]
    return list(dict.fromkeys(root.get_submodule(name) for name in names))


def attending(module: nn.Module) -> None:
    """A module makes an attention call."""
    for count in Count._attending.get(id(module), ()):
        count.one_more()
