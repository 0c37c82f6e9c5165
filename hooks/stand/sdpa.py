"""Standing at `torch.nn.functional.scaled_dot_product_attention`, for models outside transformers' interface.

torch's fused attention receives q, k, v and a mask and gives z, whoever calls it: timm's and diffusers' layers,
`torch.nn.MultiheadAttention`, Falcon, SAM, code that comes with a checkpoint, a module that somebody wrote. One
function mode (`torch.overrides.TorchFunctionMode`) sees the calls of a thread, and hooks on the watched modules say
whose call each is: the innermost module that runs. The mode is on while a watched module runs and at no other time, in
whatever thread runs it.

`torch.nn.MultiheadAttention` hides both its attention and its output projection inside one function: while it is
watched, that function runs with both sent out where they are seen. Its fast path and that of
`torch.nn.TransformerEncoderLayer` call no attention at all; they are off in every run of ours (`forced_eager`), and
`m.check()` says so. Asked for its weights (`need_weights=True`) it computes its own softmax, which interp does not see.

diffusers' registry of backends (`hooks/denoisers/backends.py`) is seen from here as well: a call that does not end in
torch's function is the innermost module's in the same way.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.hooks.denoisers.backends import Backends, mask_of
from interp.hooks.errors import ModelError
from interp.hooks.passes import attending
from interp.hooks.stand.attention import through
from interp.hooks.stand.call import REGISTRY, Call, Tap


class _Running(threading.local):
    """What runs in a thread: the watched modules from the outside in, and whether their calls are looked at."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.mode: _Mode | None = None
        self.batch = 1
        """The number of rows that torch's own attention was called with."""
        self.busy = 0


_running = _Running()


@contextmanager
def unseen() -> Iterator[None]:
    """Fused attention that is nobody's call: what stands at an attention computes with it too."""
    _running.busy += 1
    try:
        yield
    finally:
        _running.busy -= 1


class Sdpa:
    """Who watches which module's calls of fused attention."""

    _lock = threading.RLock()
    _taps: ClassVar[weakref.WeakKeyDictionary[nn.Module, list[Tap]]] = weakref.WeakKeyDictionary()
    _hooks: ClassVar[weakref.WeakKeyDictionary[nn.Module, tuple[int, list[Any]]]] = weakref.WeakKeyDictionary()

    @classmethod
    def watch(cls, module: nn.Module, tap: Tap) -> None:
        """Send the fused attention calls of `module` itself, not those of modules inside it, through `tap`."""
        with cls._lock:
            Backends.hold(_dispatched)
            cls._taps[module] = [*cls._taps.get(module, ()), tap]
            for part in module.modules():
                cls._stand(part)

    @classmethod
    def forget(cls, module: nn.Module, tap: Tap) -> None:
        """Undo `watch`."""
        with cls._lock:
            Backends.release()
            left = [other for other in cls._taps.get(module, ()) if other is not tap]
            if left:
                cls._taps[module] = left
            else:
                cls._taps.pop(module, None)
            for part in module.modules():
                cls._leave(part)

    @classmethod
    def of(cls, module: nn.Module) -> list[Tap]:
        """Those who want the calls of a module in the current thread."""
        return [tap for tap in cls._taps.get(module, ()) if tap.live()]

    @classmethod
    def _stand(cls, part: nn.Module) -> None:
        count, handles = cls._hooks.get(part, (0, []))
        if not count:
            handles = [
                part.register_forward_pre_hook(_enter, prepend=True),
                part.register_forward_hook(_exit, always_call=True),
            ]
        cls._hooks[part] = (count + 1, handles)

    @classmethod
    def _leave(cls, part: nn.Module) -> None:
        count, handles = cls._hooks.get(part, (0, []))
        if count > 1:
            cls._hooks[part] = (count - 1, handles)
            return
        cls._hooks.pop(part, None)
        for handle in handles:
            handle.remove()


def _enter(module: nn.Module, _: Any) -> None:
    if not _running.modules:
        _running.mode = _Mode()
        _running.mode.__enter__()
    _running.modules.append(module)


def _exit(module: nn.Module, _: Any, __: Any) -> None:
    if not any(one is module for one in _running.modules):
        return  # it was entered before anybody watched it
    while _running.modules.pop() is not module:
        pass
    if not _running.modules and _running.mode is not None:
        _running.mode.__exit__(None, None, None)
        _running.mode = None


class _Mode(TorchFunctionMode):
    """Sends fused attention through the taps of the module that runs; everything else goes as it went."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _running.busy:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _called(*args, **kwargs)
        if func is F.multi_head_attention_forward and isinstance(_running.modules[-1], nn.MultiheadAttention):
            query = args[0] if args else kwargs["query"]
            _running.batch = query.shape[1] if query.ndim == 3 else 1
            return _opened()(*args, **kwargs)
        return func(*args, **kwargs)


def _called(*args: Any, **kwargs: Any) -> Tensor:
    """A call of fused attention, by whoever runs."""
    owner = _running.modules[-1]
    attending(owner)
    taps = Sdpa.of(owner)
    if not taps:
        return F.scaled_dot_product_attention(*args, **kwargs)
    with unseen():
        return _seen(owner, taps, *args, **kwargs)


def _dispatched(name: str, backend: Callable[..., Any], given: dict[str, Any]) -> Any:
    """A call of a backend of diffusers', by whoever runs."""
    owner = _running.modules[-1] if _running.modules and not _running.busy else None
    if owner is not None:
        attending(owner)
    taps = [] if owner is None else Sdpa.of(owner)
    if owner is None or not taps:
        return backend(**given)
    if given.get("_parallel_config") is not None or given.get("return_lse"):
        raise ModelError(
            f"the attention backend {name!r} of diffusers runs in context parallel, where each device has a part of the"
            " sequence only: run the denoiser on one device."
        )
    with unseen():
        return _seen_backend(owner, taps, name, backend, given)


def _seen_backend(
    owner: nn.Module, taps: list[Tap], name: str, backend: Callable[..., Any], given: dict[str, Any]
) -> Tensor:
    """One call of a backend through the taps, with heads before positions as everywhere else."""
    query, key = given["query"], given["key"]
    mask = mask_of(given.get("attn_mask"), query, key)
    q, k, v = (given[part].transpose(1, 2) for part in ("query", "key", "value"))
    seen = _corner(q, k) if given.get("is_causal") else mask

    def attend(
        _: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **__: Any
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        made = backend(**given | {"query": q, "key": k, "value": v} | ({} if mask is seen else {"attn_mask": mask}))
        return made, None

    arguments = {"scaling": given.get("scale"), "is_causal": False}
    return through(Call(owner, REGISTRY + name, attend, q, k, v, seen, arguments), taps)[0]


@functools.cache
def _opened() -> Any:
    """torch's function for multi-head attention, with its attention and its output projection sent to where they are
    seen: the same code, in whose names these two mean ours."""
    inside = F.multi_head_attention_forward
    names = {**vars(F), "scaled_dot_product_attention": _called, "linear": _projected,
             "has_torch_function": lambda given: False}  # fmt: skip
    made = types.FunctionType(inside.__code__, names, inside.__name__, inside.__defaults__)
    made.__kwdefaults__ = inside.__kwdefaults__
    return made


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output projection as the module it is; x comes with positions before batch, in one axis."""
    owner = _running.modules[-1]
    assert isinstance(owner, nn.MultiheadAttention)
    if owner.out_proj.weight is not weight:
        return F.linear(x, weight, bias)
    batch = _running.batch
    made: Tensor = owner.out_proj(x.unflatten(0, (-1, batch)).transpose(0, 1))
    return made.transpose(0, 1).flatten(0, 1)


def _seen(
    owner: nn.Module,
    taps: list[Tap],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """One call through the taps; batches of any number of axes are one axis to them."""
    lead = query.shape[:-3]
    heads = getattr(owner, "num_heads", getattr(owner, "heads", None))
    if len(lead) == 2 and heads == query.shape[1] != query.shape[2]:
        raise ModelError(
            f"{type(owner).__name__} attends to [row, head, window, position, d], heads before windows, and the order"
            " of its positions is then not known: its heads are not supported."
        )

    def attend(
        _: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **__: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Exactly what the model called, in the axes that it called it with: other shapes take other kernels."""
        q, k, v = (x.reshape(*given.shape[:-3], *x.shape[1:]) for x, given in ((q, query), (k, key), (v, value)))
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask if mask is seen else mask, dropout_p=dropout_p, is_causal=is_causal,
            scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
        return _batched(z, lead).transpose(1, 2), None

    q, k, v = (_batched(x, lead) for x in (query, key, value))
    seen = _corner(query, key) if is_causal and query.shape[-2] != key.shape[-2] else _batched(attn_mask, lead)
    arguments = {"scaling": scale, "is_causal": is_causal and seen is None}
    call = Call(owner, "sdpa", attend, q, k, v, seen, arguments)
    z = through(call, taps)[0].transpose(1, 2)
    return z.reshape(*query.shape[:-1], z.shape[-1])


def _corner(query: Tensor, key: Tensor) -> Tensor:
    """What torch means by causal: row i sees the keys up to i, whatever their number. Elsewhere the last row sees the
    last key."""
    return torch.ones(1, 1, query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


def _batched(x: Any, lead: Sequence[int]) -> Any:
    """[b, head, position, d] of a tensor with other axes before the heads; a mask has what can be broadcast to it."""
    if x is None or x.ndim <= 4:
        return x if x is None else x[(None,) * (4 - x.ndim)]
    return x.expand(*lead, *x.shape[-3:]).flatten(0, -4)
