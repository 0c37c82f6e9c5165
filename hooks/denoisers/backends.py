"""Attention that diffusers sends to a backend of its registry: FlashAttention, Sage, Flex, xFormers.

The newer half of diffusers calls `dispatch_attention_fn`, which looks a backend up in one table,
`_AttentionBackendRegistry._backends`, and calls it with q, k, v [b, position, head, d] by keyword. Modules bind that
function by name, so the table is the one place where all calls pass. torch's own fused attention is among the backends
(`NATIVE`) and is seen where everybody's is; the others are wrapped while somebody watches and put back after.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

HOME = "diffusers.models.attention_dispatch"
NATIVE = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
"""Backends that call torch's fused attention."""
Through = Callable[[str, Callable[..., Any], dict[str, Any]], Any]
"""Gets a backend's name, itself, and what it was called with."""


class Backends:
    """The table, wrapped while anybody watches."""

    _lock = threading.RLock()
    _count: ClassVar[int] = 0
    _wrapped: ClassVar[dict[Any, tuple[Any, Any]]] = {}

    @classmethod
    def hold(cls, through: Through) -> None:
        """Send every call of a backend that is not torch's through this; counted."""
        with cls._lock:
            cls._count += 1
            table = cls._table()
            for name in [name for name in table if str(name.value) not in NATIVE and name not in cls._wrapped]:
                wrapper = _wrapper(str(name.value), table[name], through)
                cls._wrapped[name] = (table[name], wrapper)
                table[name] = wrapper

    @classmethod
    def release(cls) -> None:
        """Undo `hold`; the last one puts back what is still ours."""
        with cls._lock:
            cls._count -= 1
            if cls._count:
                return
            table = cls._table()
            for name, (own, wrapper) in cls._wrapped.items():
                if table.get(name) is wrapper:
                    table[name] = own
            cls._wrapped.clear()

    @staticmethod
    def _table() -> dict[Any, Any]:
        """By name; empty while diffusers is not imported, when no model of it can be held."""
        home = sys.modules.get(HOME)
        return {} if home is None else home._AttentionBackendRegistry._backends


def _wrapper(name: str, own: Callable[..., Any], through: Through) -> Callable[..., Any]:
    @functools.wraps(own)
    def call(**kwargs: Any) -> Any:
        return through(name, own, kwargs)

    return call


def mask_of(given: Any, query: Tensor, key: Tensor) -> Tensor | None:
    """A backend's mask with the axes [b, head, query, key]: two axes are [row, key] where they have those sizes."""
    if given is None or given.ndim == 4:
        return given
    if given.ndim == 3:
        return given[:, None]
    rows = query.shape[0]
    if given.ndim == 2 and given.shape[0] in (1, rows) and given.shape[0] != query.shape[1]:
        return given[:, None, None]
    return given[(None,) * (4 - given.ndim)]
