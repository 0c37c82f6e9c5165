"""What is put on a model's modules while its blocks are driven: met by the thread that put it there, and by no other.

torch's hooks, taps of attention calls and a module's `forward` belong to the module, so that every thread that runs the
model would meet them. Here each asks first whose call it is; the calls of other threads go the way they always went.
This is the only place where a module's `forward` is replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from interp.hooks.anatomy.towers import Layer, Port
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.ports import stand_at
from interp.hooks.stand.standpoints import watch

Forward = Callable[..., Any]
_LOCK = threading.Lock()


class OwnTap(Tap):
    """A tap for the calls of the thread that puts it on."""

    thread: int | None = 0


class Calls(OwnTap):
    """Keeps the attention calls of a run, by module."""

    def __init__(self) -> None:
        self.calls: dict[int, list[Call]] = {}

    def record(self, call: Call) -> None:
        self.calls.setdefault(id(call.module), []).append(call)

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of one module, in order."""
        return self.calls.get(id(module), [])


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
        handle = stand_at(self.root, port, lambda x: change(x) if get_ident() == own else x, batch=lambda: rows)
        self.callback(handle.remove)

    def before(self, module: nn.Module, look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        """Look at a module's arguments before it runs."""
        own = self.thread

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() == own:
                look(args, kwargs)

        self.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, look: Callable[[tuple[Any, ...], Any], None]) -> None:
        """Look at a module's arguments and at what it returns."""
        own = self.thread

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if get_ident() == own:
                look(args, output)

        self.callback(module.register_forward_hook(hook).remove)

    def instead(self, module: nn.Module, forward: Forward) -> None:
        """Run something else in the place of a module's own forward."""
        with _LOCK:
            found = vars(module).get("forward")
            if not isinstance(found, _Forwards):
                found = _Forwards(module)
                module.forward = found
            found.by_thread.setdefault(self.thread, []).append(forward)
        self.callback(_give_back, module, found, self.thread, forward)


class _Forwards:
    """A module's forward while some threads run something else in its place."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Forward = module.forward
        self.set = "forward" in vars(module)
        """Whether the module had one of its own, not its class's."""
        self.by_thread: dict[int, list[Forward]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mine = self.by_thread.get(get_ident())
        return (mine[-1] if mine else self.own)(*args, **kwargs)


def _give_back(module: nn.Module, forwards: _Forwards, thread: int, forward: Forward) -> None:
    with _LOCK:
        mine = forwards.by_thread[thread]
        mine.remove(forward)
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
