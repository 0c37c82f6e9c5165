"""What is put on a model's modules while its blocks are driven: met by the thread that put it there, and by no other.

torch's hooks, taps of attention calls and a module's `forward` belong to the module, so that every thread that runs the
model would meet them. Here each asks first whose call it is; the calls of other threads go the way they always went.
This is the only place where a module's `forward` is replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from interp.hooks.anatomy.towers import Layer, Nth, Port
from interp.hooks.passes import Count
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.ports import stand_at
from interp.hooks.stand.standpoints import watch

Forward = Callable[..., Any]
_LOCK = threading.Lock()


class OwnTap(Tap):
    """A tap for the calls of the thread that puts it on."""

    thread: int | None = 0


class Calls(OwnTap):
    """Keeps the attention calls of a run, by module and pass."""

    def __init__(self) -> None:
        self.calls: dict[tuple[int, int | None], list[Call]] = {}

    def record(self, call: Call) -> None:
        self.calls.setdefault((id(call.module), call.nth), []).append(call)

    def of(self, root: nn.Module, layer: Layer) -> list[Call]:
        """The calls of one layer, in order."""
        module, nth = root.get_submodule(layer.attention), layer.nth
        return self.calls.get((id(module), None if nth is None else nth.number), [])


class Intercept(ExitStack[bool | None]):
    """Everything that the current thread has put on a model; leaving it takes all of it off."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root, self.thread = root, get_ident()

    def tap(self, layer: Layer, tap: OwnTap) -> None:
        """Send a layer's attention calls through a tap."""
        tap.thread = self.thread
        self.callback(watch(self.root, layer, tap))

    def port(self, port: Port, change: Callable[[Tensor], Tensor], *, rows: int | None = None) -> None:
        """See, and replace, the tensor at a port; `rows` are those of a call whose rows and positions come folded."""
        own = self.thread
        handle = stand_at(self.root, port, change, batch=lambda: rows, live=lambda: get_ident() == own)
        self.callback(handle.remove)

    def mine(self, nth: Nth | None = None) -> Callable[[], bool]:
        """Whether it is this thread that runs, and in this pass of a module that has several."""
        own = self.thread
        if nth is None:
            return lambda: get_ident() == own
        count, undo = Count.watch(self.root, nth, lambda: get_ident() == own)
        self.callback(undo)
        return lambda: get_ident() == own and count.at(nth.number)

    def before(
        self, module: nn.Module, look: Callable[[tuple[Any, ...], dict[str, Any]], None], *, nth: Nth | None = None
    ) -> None:
        """Look at a module's arguments before it runs."""
        mine = self.mine(nth)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if mine():
                look(args, kwargs)

        self.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, look: Callable[[tuple[Any, ...], Any], None], *, nth: Nth | None = None) -> None:
        """Look at a module's arguments and at what it returns."""
        mine = self.mine(nth)

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if mine():
                look(args, output)

        self.callback(module.register_forward_hook(hook).remove)

    def instead(self, module: nn.Module, forward: Forward, *, nth: Nth | None = None) -> None:
        """Run something else in the place of a module's own forward."""
        other = _Other(forward, self.mine(nth))
        with _LOCK:
            found = vars(module).get("forward")
            if not isinstance(found, _Forwards):
                found = _Forwards(module)
                module.forward = found
            found.by_thread.setdefault(self.thread, []).append(other)
        self.callback(_give_back, module, found, self.thread, other)


@dataclass(frozen=True, eq=False)
class _Other:
    """A forward in the place of a module's own, while `mine` says so."""

    forward: Forward
    mine: Callable[[], bool]


class _Forwards:
    """A module's forward while some threads run something else in its place."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Forward = module.forward
        self.set = "forward" in vars(module)
        """Whether the module had one of its own, not its class's."""
        self.by_thread: dict[int, list[_Other]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        others = reversed(self.by_thread.get(get_ident(), ()))
        return next((other.forward for other in others if other.mine()), self.own)(*args, **kwargs)


def _give_back(module: nn.Module, forwards: _Forwards, thread: int, other: _Other) -> None:
    with _LOCK:
        mine = forwards.by_thread[thread]
        mine.remove(other)
        if not mine:
            del forwards.by_thread[thread]
        if forwards.by_thread or vars(module).get("forward") is not forwards:
            return
        if forwards.set:
            module.forward = forwards.own
        else:
            del module.forward


def as_made(module: nn.Module) -> bool:
    """Whether a module runs its class's forward in the current thread."""
    found = vars(module).get("forward")
    return found is None or (isinstance(found, _Forwards) and not found.set and get_ident() not in found.by_thread)
