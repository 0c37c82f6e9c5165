"""What a value is by content, as a digest that another process finds again: by which a sweep knows its metric.

A function is its code, its defaults, what it closes over and the globals it names, as far as these are plain values,
tensors, modules or functions themselves; a dataclass is its class and its fields. What belongs to an installed package
or to this toolkit goes by its name (versions are written down elsewhere). Anything else is refused: its address says
nothing, since another value may have it tomorrow.
Limits: what a function reads through attributes of a module of yours is known by its name alone.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from interp.hooks.inputs.inputs import Inputs
from interp.kernels.errors import InterpError

PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type(Ellipsis),
    torch.dtype,
    torch.device,
    torch.Size,
    range,
)
NAMED = (BuiltinFunctionType, MethodWrapperType, type(str.join), type(str.__add__))
"""Functions in C, which have no code to read."""


def named(value: Any) -> str:
    """What a value calls itself, and its digest: `LogitDifference 3f0c...`."""
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{name} {content(value)}"


def content(value: Any) -> str:
    """The digest of a value's content; refused where it has none that could be found again."""
    return _Reader(value).digest


class _Reader:
    """Walks through one value; a function or a class is read once, and goes by its number where it comes again."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.known, self.within = whole, dict[int, tuple[int, Any]](), list[int]()
        total = hashlib.sha256()
        for part in self.parts(whole):
            total.update(len(part).to_bytes(8, "big") + part)
        self.digest = total.hexdigest()

    def parts(self, value: Any) -> Iterator[bytes]:
        """What the digest is made of, in order."""
        if isinstance(value, enum.Enum):
            yield _text(value)
        elif isinstance(value, PLAIN):
            yield f"{type(value).__qualname__} {value!r}".encode()
        elif id(value) in self.known:
            yield f"again {self.known[id(value)][0]}".encode()
        elif id(value) in self.within:
            yield f"around {self.within.index(id(value))}".encode()
        else:
            if isinstance(value, FunctionType | type):
                self.known[id(value)] = (len(self.known), value)
            self.within.append(id(value))
            yield from self._compound(value)
            self.within.pop()

    def _compound(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, Tensor | numpy.ndarray):
            yield from _numbers(value)
        elif isinstance(value, list | tuple):
            yield from self._all(type(value).__qualname__, *value)
        elif isinstance(value, set | frozenset):
            yield from self._all("set", *sorted(content(one) for one in value))
        elif isinstance(value, Mapping):
            yield from self._all("mapping", *(part for pair in value.items() for part in pair))
        elif isinstance(value, ModuleType):
            yield f"module {value.__name__}".encode()
        elif isinstance(value, Inputs):
            yield f"inputs {value.digest()}".encode()
        elif isinstance(value, Image.Image):
            yield from self._all("picture", value.mode, value.size, value.tobytes())
        elif isinstance(value, Path | slice):
            yield f"{type(value).__qualname__} {value!r}".encode()
        else:
            yield from self._callable(value)

    def _callable(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, functools.partial):
            yield from self._all("partial", value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            yield from self._all("method", value.__func__, value.__self__)
        elif isinstance(value, numpy.ufunc):
            yield f"numpy {value.__name__}".encode()
        elif isinstance(value, NAMED):
            owner = getattr(value, "__self__", None)
            yield _text(value)
            yield from () if owner is None or isinstance(owner, ModuleType | type) else self.parts(owner)
        elif isinstance(value, FunctionType):
            yield from [_text(value)] if _installed(value.__module__) else self._function(value)
        elif isinstance(value, type):
            yield from [_text(value)] if _installed(value.__module__) else self._class(value)
        elif isinstance(value, nn.Module):
            yield from self._all("module", type(value), self._described(value), value.state_dict())
        elif is_dataclass(value):
            held = [(one.name, getattr(value, one.name)) for one in fields(value) if one.compare]
            yield from self._all("dataclass", type(value), *held)
        else:
            self._refuse(value)

    def _all(self, kind: str, *values: Any) -> Iterator[bytes]:
        yield f"{kind} {len(values)}".encode()
        for value in values:
            yield from self.parts(value)

    def _function(self, value: FunctionType) -> Iterator[bytes]:
        inner = getattr(value, "__wrapped__", None)
        yield from self._code(value.__code__)
        closed = [cell.cell_contents if _filled(cell) else Ellipsis for cell in value.__closure__ or ()]
        yield from self._all("function", value.__defaults__, value.__kwdefaults__, closed, inner)
        for name in sorted(set(_globals(value.__code__)) & set(value.__globals__)):
            yield from self._all("global", name, value.__globals__[name])

    def _code(self, code: CodeType) -> Iterator[bytes]:
        said = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_names,
                code.co_varnames, code.co_freevars, code.co_cellvars)  # fmt: skip
        yield code.co_code
        yield repr(said).encode()
        for one in code.co_consts:
            yield from self._code(one) if isinstance(one, CodeType) else self.parts(one)

    def _class(self, value: type) -> Iterator[bytes]:
        yield from self._all("class", value.__qualname__, *value.__bases__)
        for name, one in sorted(vars(value).items()):
            plain = one.__func__ if isinstance(one, staticmethod | classmethod) else one
            parts = (plain.fget, plain.fset) if isinstance(plain, property) else (plain,)
            if not name.startswith("__") or isinstance(plain, FunctionType):
                yield from self._all(name, *(one for one in parts if not _made(one)))

    def _described(self, value: nn.Module) -> str:
        said = repr(value)
        if " at 0x" in said:
            self._refuse(value)
        return said

    def _refuse(self, value: Any) -> None:
        inside = "" if value is self.whole else f", which holds a {type(value).__qualname__}"
        name = getattr(self.whole, "__qualname__", None) or type(self.whole).__qualname__
        raise InterpError(
            f"{name}{inside} cannot be told by its content, so a directory could not say what was measured: give a"
            " named function that reads plain values, tensors and functions, or a frozen dataclass with a __call__; or"
            " leave out= out."
        )


def _numbers(value: Any) -> Iterator[bytes]:
    array = value.detach().cpu().contiguous().resolve_conj().resolve_neg() if isinstance(value, Tensor) else value
    yield f"{type(value).__name__} {tuple(array.shape)} {array.dtype}".encode()
    if isinstance(array, Tensor):
        yield array.reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield array.tobytes()


def _text(value: Any) -> bytes:
    if isinstance(value, enum.Enum):
        return f"{type(value).__module__}.{value}".encode()
    return f"{getattr(value, '__module__', None)}.{value.__qualname__}".encode()


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _globals(code: CodeType) -> Iterator[str]:
    """Names that the code and the code inside it read from its module."""
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield one.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals(inner)


def _made(value: Any) -> bool:
    """What a class is given by decorators of the standard library, and what says nothing of what it does."""
    if isinstance(value, FunctionType) and value.__code__.co_filename == "<string>":
        return True
    return value is None or type(value).__name__ in ("member_descriptor", "getset_descriptor", "_abc_data")


@functools.cache
def _places() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(str(Path(paths[name]).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _installed(module: str | None) -> bool:
    """Whether a module is the toolkit's, the standard library's, or of an installed package."""
    top = (module or "").partition(".")[0]
    if top in ("interp", "builtins") or top in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and str(Path(file).resolve()).startswith(_places())
