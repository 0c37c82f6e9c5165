"""Denoising loops that call a model's `forward` and not the model, where torch runs no hooks of it.

DiffusionGemma's `generate` encodes the text so far, then calls `self.forward` for each step of denoising its canvas.
While a session is on such a model these calls go through the model itself: the same forward, and a call of the model
that is counted, recorded and edited. Limits: a loop that keeps `model.forward` from before the session is not seen.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

KINDS = ("DiffusionGemmaForBlockDiffusion",)
"""Classes whose own loops do that."""
_LOCK = threading.Lock()
_SENT: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
"""By module, how many sessions listen, and the hooks that stand on it for them."""


class _Entered(threading.local):
    """Whether the forward that comes next is the module's own call of it."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        self.modules.append(module)

    def leave(self, module: nn.Module, *_: Any) -> None:
        if module in self.modules:  # a hook before the forward raised
            self.modules.remove(module)


_ENTERED = _Entered()


def through_the_module(module: nn.Module) -> Callable[[], None]:
    """Send calls of `forward` through the module until what this returns is called; counted, as sessions of several
    threads end in any order."""
    if type(module).__name__ not in KINDS:
        return lambda: None
    with _LOCK:
        count, handles = _SENT.get(module, (0, []))
        if not count:
            vars(module)["forward"] = _sent(module, module.forward)
            handles = [
                module.register_forward_pre_hook(_ENTERED.enter, prepend=True),
                module.register_forward_hook(_ENTERED.leave, always_call=True),
            ]
        _SENT[module] = (count + 1, handles)
    return functools.partial(_back, module)


def _back(module: nn.Module) -> None:
    with _LOCK:
        count, handles = _SENT.pop(module)
        if count > 1:
            _SENT[module] = (count - 1, handles)
            return
        vars(module).pop("forward")
        for handle in handles:
            handle.remove()


def _sent(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
    """The module's forward where the module calls it, and a call of the module for everybody else."""

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if module not in _ENTERED.modules:
            return module(*args, **kwargs)
        _ENTERED.modules.remove(module)
        return own(*args, **kwargs)

    return forward
