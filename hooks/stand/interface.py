"""The one place where we stand: transformers' attention call.

transformers (>= 5.1) sends the attention of nearly every architecture through `AttentionInterface.get_interface`,
which hands the layer a function `fn(module, q, k, v, mask, ...) -> (z, weights)`. While something watches, that
method is wrapped so that the function it returns passes calls of watched modules, and only those, through their taps.
The user's own implementation and its mask stay: nothing is registered under a new name, since a name without a mask
function loses the causal mask without a word. The method is put back when the last watcher leaves.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from interp.hooks.passes import attending
from interp.hooks.stand.attention import through
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.sdpa import unseen

MARK = "_interp_wrapper"


class Switch:
    """Who watches which module, and the wrapped method while anybody does.

    The wrapper hangs on transformers' class and the table on the wrapper, so that a module reloaded by autoreload finds
    and extends them instead of wrapping the wrapper. Where another library has wrapped the method since, ours stays
    underneath and passes everything through until the other one is gone: taking theirs off is not ours to do.
    """

    _lock = threading.RLock()

    @classmethod
    def watch(cls, module: nn.Module, tap: Tap) -> None:
        """Send the attention calls of `module` through `tap`."""
        with cls._lock:
            cls._installed().interp_taps.setdefault(id(module), []).append(tap)

    @classmethod
    def forget(cls, module: nn.Module, tap: Tap) -> None:
        """Undo `watch`; the last one out puts transformers' own method back."""
        with cls._lock:
            wrapper = cls._wrapper()
            if wrapper is None:
                return
            table = wrapper.interp_taps
            table[id(module)] = [other for other in table.get(id(module), []) if other is not tap]
            if not table[id(module)]:
                table.pop(id(module))
            if not table:
                cls._uninstall(wrapper)

    @classmethod
    def watched(cls) -> int:
        """How many modules are being watched in this process."""
        wrapper = cls._wrapper()
        return 0 if wrapper is None else len(wrapper.interp_taps)

    @staticmethod
    def _wrapper() -> Any:
        """Our wrapper, wherever it is among those of others; None while nobody watches."""
        from transformers.modeling_utils import AttentionInterface

        return AttentionInterface.__dict__.get(MARK)

    @classmethod
    def _installed(cls) -> Any:
        from transformers.modeling_utils import AttentionInterface

        wrapper = cls._wrapper()
        if wrapper is None:
            wrapper = _wrapped(AttentionInterface.get_interface)
            AttentionInterface.get_interface = wrapper
            setattr(AttentionInterface, MARK, wrapper)
        return wrapper

    @staticmethod
    def _uninstall(wrapper: Any) -> None:
        from transformers.modeling_utils import AttentionInterface

        if AttentionInterface.get_interface is wrapper:
            AttentionInterface.get_interface = wrapper.interp_original
            delattr(AttentionInterface, MARK)


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    taps_of: dict[int, list[Tap]] = {}

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = original(self, attn_implementation, default)

        @functools.wraps(function)
        def call(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            attending(module)
            taps = [tap for tap in taps_of.get(id(module), ()) if tap.live()]
            if not taps:
                return function(module, query, key, value, *args, **kwargs)
            by_keyword = "attention_mask" in kwargs
            mask = kwargs.pop("attention_mask") if by_keyword else args[0] if args else None
            sent = Call(
                module, str(attn_implementation), function, query, key, value, mask, kwargs, args[1:], by_keyword
            )
            with unseen():
                return through(sent, taps)

        return call

    get_interface.interp_taps = taps_of  # type: ignore[attr-defined]
    get_interface.interp_original = original  # type: ignore[attr-defined]
    return get_interface
