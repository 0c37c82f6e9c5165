"""A pretend accelerator with two devices, `pretend:0` and `pretend:1`, for tests on machines that have none.

    pretend.start()
    model = pretend.moved(model)

It is a PyTorch backend of its own (PrivateUse1), whose memory is the computer's and whose every operation is done by
the CPU's kernels, so values are real; its tensors are plain `torch.Tensor`s with a storage, views and gradients, and
say another device. What a GPU refuses it refuses: tensors of several devices in one operation (a CPU tensor of no
dimension among pointwise ones, and indices, excepted), a CPU generator for a draw on the device, `.numpy()`.

Limits: one stream, no memory to run out of, no generator of its own, no memory formats other than strides, no
`torch.compile`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

from interp.kernels.native.library import _compiler

NAME = "pretend"
aten = torch.ops.aten
INDEXED = {
    aten.index.Tensor,
    aten.index.Tensor_out,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""What takes indices from the CPU on a GPU too."""
TENSOR = torch._C.TensorType.get()
"""The kind of an argument that is a tensor."""


class _Hook(_DummyPrivateUse1Hook):
    """Nobody is to find an accelerator who did not ask for this one."""

    def is_available(self) -> bool:
        return False


class _Module(_DummyBackendModule):
    """What PyTorch asks `torch.pretend` for."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 2


# Memory: one block of malloc's holds what DLPack wants to know, the size and the data, and is its own to free.

HEADER = struct.Struct("=QiiiBBHQQQQQq")
"""DLPack's DLManagedTensor: data, device (kind, index), dimensions, dtype (code, bits, lanes), sizes, strides, offset,
context, deleter; and behind it the one size."""
EXTERNAL, BEFORE = 12, 128
"""DLPack's number for devices like this one; the bytes before the data."""
_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_free = ctypes.cast(_libc.free, ctypes.c_void_p).value
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


@cache
def _code(dtype: torch.dtype) -> int:
    """DLPack's for a kind of number."""
    if dtype in (torch.bool, torch.bfloat16):
        return 6 if dtype is torch.bool else 4
    return 5 if dtype.is_complex else 2 if dtype.is_floating_point else int(not dtype.is_signed)


def _block(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[count] of uninitialised memory."""
    size = dtype.itemsize
    start = _libc.malloc(2 * BEFORE + count * size)
    data, sizes = (start + BEFORE + 63) // 64 * 64, start + HEADER.size - 8
    what = EXTERNAL, device.index or 0, 1, _code(dtype), 8 * size, 1
    ctypes.memmove(start, HEADER.pack(data, *what, sizes, 0, 0, 0, _free, count), HEADER.size)
    return torch.from_dlpack(_capsule(start, b"dltensor", None))


def _empty(like: Tensor, device: torch.device) -> Tensor:
    """Uninitialised, of a tensor's shape and strides."""
    size, stride = like.size(), like.stride()
    count = like.numel()
    if count and not like.is_contiguous():
        count = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return _viewed(_block(count, like.dtype, device), size, stride, 0)


def _set(x: Tensor, source: Tensor) -> Tensor:
    memory, place = source.untyped_storage(), (source.size(), source.stride())
    return _on_cpu(aten.set_.source_Storage_storage_offset)(x, memory, source.storage_offset(), *place)


def _on_cpu(op: Any) -> Callable[..., Tensor]:
    """The CPU's kernel itself, where it looks at sizes and strides only."""
    return partial(op._op_dk, DispatchKey.CPU)


_viewed = _on_cpu(aten.as_strided.default)


def _host(x: Tensor) -> Tensor:
    """The same memory as a CPU tensor."""
    if not x.numel():
        return _plain_empty(x.size(), x.stride(), dtype=x.dtype)
    own = x.untyped_storage()
    memory: Any = torch._C._construct_storage_from_data_pointer(own.data_ptr(), torch.device("cpu"), own.nbytes())
    return _plain_empty((0,), (1,), dtype=x.dtype).set_(memory, x.storage_offset(), x.size(), x.stride())


def _there(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device."""
    made = _empty(x, device)
    _host(made).copy_(x)
    return made


# Operations: all of them are the CPU's on the same memory.


def _operation(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation with a tensor of ours, or made on one of our devices."""
    pairs: list[tuple[Tensor, Tensor]] = []
    away: list[Any] = []
    kinds = _kinds(op)
    here = [_taken(x, kind, pairs, away) for x, kind in zip(args, kinds.values(), strict=False)]
    named = {name: _taken(x, kinds[name], pairs, away) for name, x in kwargs.items()}
    device = _device_of(op, args, pairs, away, named.get("device"))
    if "device" in named:
        named["device"] = torch.device("cpu")
    made = op(*here, **named)
    for x, own in pairs:
        if own.size() != x.size() or own.stride() != x.stride():
            x.data = _there(own, device)
    return _given(made, pairs, device)


@cache
def _kinds(op: Any) -> dict[str, Any]:
    """Which kind of value each argument is."""
    return {argument.name: argument.type for argument in op._schema.arguments}


def _taken(x: Any, kind: Any, pairs: list[tuple[Tensor, Tensor]], away: list[Any]) -> Any:
    """An argument for the CPU's kernel; ours are kept with what stands for them, what is on the CPU by itself."""
    if isinstance(x, (list, tuple)):
        return [_taken(one, kind, pairs, away) for one in x]
    if isinstance(x, (int, float)) and kind is TENSOR:  # a number among tensors is handed to Python as one
        return torch.tensor(x)
    if isinstance(x, Tensor) and not x.is_cpu:
        pairs.append((x, _host(x)))
        return pairs[-1][1]
    if isinstance(x, (Tensor, torch.Generator)):
        away.append(x)
    return x


def _given(made: Any, pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> Any:
    """What an operation made: one of its arguments, a view of one, or something new."""
    if isinstance(made, (list, tuple)):
        return [_given(one, pairs, device) for one in made]
    if not isinstance(made, Tensor):
        return made
    where = made.untyped_storage().data_ptr()
    for x, own in pairs:
        if made is own:
            return x
        if where and where == own.untyped_storage().data_ptr():
            if made.dtype != x.dtype:
                raise NotImplementedError(f"a view of {x.dtype} as {made.dtype} on {device}")
            return _viewed(x, made.size(), made.stride(), made.storage_offset())
    return _there(made, device)


def _device_of(op: Any, args: Any, pairs: list[tuple[Tensor, Tensor]], away: list[Any], wanted: Any) -> torch.device:
    """The device of an operation's tensors; raises where they are on several, as a GPU would."""
    found = {x.device for x, _ in pairs}
    free = {id(x) for x in args[1] if x is not None} if op in INDEXED else set()
    for x in away:
        if isinstance(x, torch.Generator):
            raise RuntimeError(f"{op}: Expected a {NAME!r} device type for generator but found {x.device.type!r}")
        if found and id(x) not in free and not (x.ndim == 0 and torch.Tag.pointwise in op.tags):
            found.add(x.device)
    if len(found) > 1:
        names = " and ".join(sorted(map(str, found)))
        raise RuntimeError(f"{op}: Expected all tensors to be on the same device, but found {names}")
    return found.pop() if found else torch.device(wanted)


def _empty_of(size: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    like = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format or torch.contiguous_format)
    return _empty(like, torch.device(device))


def _strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _empty(torch.empty_strided(size, stride, dtype=dtype, device="meta"), torch.device(device))


def _copy_from(x: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    (to if to.is_cpu else _host(to)).copy_(x if x.is_cpu else _host(x))
    return to


def _convolution(x: Tensor, weight: Tensor, *rest: Any) -> Any:
    return _operation(aten.convolution.default, x, weight, *rest)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    return _operation(aten.convolution_backward.default, grad, x, weight, None, *rest)


def _histc(x: Tensor, *how: Any) -> Tensor:
    """A GPU counts whole numbers too."""
    return _operation(aten.histc.default, x.double(), *how).to(x.dtype)


def _clone(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """What a storage's `clone` is, which a deep copy asks for and which needs an allocator that Python cannot give."""
    if memory.device.type != NAME:
        return _plain_clone(memory)
    whole = _block(memory.nbytes(), torch.uint8, memory.device)
    ctypes.memmove(whole.data_ptr(), memory.data_ptr(), memory.nbytes())
    return whole.untyped_storage()


_plain_empty, _plain_clone = torch.empty_strided, torch.UntypedStorage.clone
KERNELS = {
    "empty.memory_format": _empty_of,
    "empty_strided": _strided,
    "_copy_from": _copy_from,
    "as_strided": _viewed,
    "view": _on_cpu(aten.view.default),
    "set_.source_Tensor": _set,
    "set_.source_Storage_storage_offset": _on_cpu(aten.set_.source_Storage_storage_offset),
    "native_layer_norm": partial(_operation, aten.native_layer_norm.default),
    "histc": _histc,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
}
"""What the CPU's kernel of the same name cannot do for us."""


def moved(module: torch.nn.Module, device: str = f"{NAME}:0") -> torch.nn.Module:
    """`module.to(device)`, parameters staying the objects they are, as on a GPU, so that tied weights stay tied."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def missing() -> str | None:
    """Why there can be no pretend accelerator here, if so."""
    return None if _compiler() else "no C++ compiler, with which the pretend accelerator says how many devices it has"


def _guard() -> Path:
    """The compiled guard, made once for each version of PyTorch and of its source."""
    source, torch_itself = Path(__file__).with_suffix(".cpp"), Path(torch.__file__).parent
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"interp-pretend-{os.getuid()}" / f"{digest}.so"
    if not made.exists():
        made.parent.mkdir(mode=0o700, exist_ok=True)
        part = made.with_suffix(f".{os.getpid()}")
        include, library = f"-I{torch_itself / 'include'}", f"-L{torch_itself / 'lib'}"
        how = [str(_compiler()), "-std=c++17", "-shared", "-fPIC", include, str(source), library, "-lc10"]
        subprocess.run([*how, "-o", str(part)], check=True)
        part.replace(made)
    return made


@cache
def start() -> None:
    """Register the accelerator, once in a process."""
    _setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
    ctypes.CDLL(str(_guard()))
    every = torch.library.Library("_", "IMPL")
    every.fallback(_operation, "PrivateUse1")
    ours = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        ours.impl(name, kernel, "PrivateUse1")
    torch.UntypedStorage.clone = _clone
    _KEPT.extend([every, ours])


_KEPT: list[torch.library.Library] = []
