"""The C++ sources `native*.cpp`, compiled on first use and kept in the user's cache, and the layout of their calls.

The library's name carries a hash of sources, flags and instruction set, so a machine of another kind compiles its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = tuple(Path(__file__).with_name(n) for n in ("native.cpp", "native_backward.cpp"))
HEADERS = tuple(Path(__file__).with_name(n) for n in ("native.h", "native_row.h"))
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]


class EditStruct(Structure):
    """`Edit` of native.h."""

    _fields_ = [
        ("kind", c_int64),
        *((n, c_void_p) for n in ("heads", "rows", "keys", "target", "value")),
        *((n, c_int64) for n in ("rows_batch", "keys_batch", "target_batch")),
    ]  # fmt: skip


class CallStruct(Structure):
    """`Call` of native.h."""

    _fields_ = [
        *((n, c_int64) for n in ("batch", "heads", "kv_heads", "rows", "keys", "d", "dv")),
        *((n, c_void_p) for n in ("q", "k", "v")),
        ("scale", c_float), ("softcap", c_float),
        ("low", c_void_p), ("high", c_void_p), ("interval_batch", c_int64), ("position", c_void_p),
        ("visible", c_void_p), ("visible_batch", c_int64), ("visible_head", c_int64),
        ("bias", c_void_p), ("bias_batch", c_int64), ("bias_head", c_int64),
        ("sinks", c_void_p), ("edits", POINTER(EditStruct)), ("n_edits", c_int64), ("z", c_void_p), ("lse", c_void_p),
        *((n, c_void_p) for n in ("entropy", "largest", "distance", "first", "previous", "self", "sink", "argmax")),
        ("topk", c_void_p), ("topk_keys", c_void_p), ("k_top", c_int64),
        ("sets", c_void_p), ("n_sets", c_int64), ("mass", c_void_p), ("first_key", c_void_p),
        ("places", c_void_p), ("axes", c_int64),
        ("received", c_void_p), ("seen", c_void_p), ("segments", c_int64), ("blind", c_void_p), ("unmoved", c_void_p),
        ("threads", c_int64),
    ]  # fmt: skip


class BackStruct(Structure):
    """`Back` of native_backward.cpp."""

    _fields_ = [
        *((n, c_void_p) for n in ("dz", "dlse")),
        *((n, c_void_p) for n in ("dentropy", "dlargest", "ddistance", "dfirst", "dprevious", "dself", "dsink")),
        *((n, c_void_p) for n in ("dtopk", "dmass", "dreceived", "dq", "dk", "dv", "dsinks")),
        ("segments", c_int64),
    ]  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The two compiled functions, or the reason why there are none."""

    attend: Callable[..., Any] | None
    gradient: Callable[..., Any] | None = None
    reason: str | None = None


@functools.cache
def library() -> Library:
    """Compiled if need be; says so once when it cannot be."""
    compiler = _compiler()
    if compiler is None:
        return _without("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    text = "".join(x.read_text() for x in SOURCES + HEADERS)
    digest = hashlib.sha256((text + " ".join(FLAGS) + _target(compiler)).encode()).hexdigest()[:16]
    path = cache() / f"native-{digest}.so"
    if not path.exists():
        failed = _compile(compiler, path)
        if failed is not None:
            return _without(failed)
    loaded = ctypes.CDLL(str(path))
    for name, structure in (("call_size", CallStruct), ("edit_size", EditStruct), ("back_size", BackStruct)):
        size = getattr(loaded, name)
        size.restype = c_int64
        if size() != ctypes.sizeof(structure):
            return _without(f"{path} and {Path(__file__).name} disagree about {name}")
    loaded.attend.restype = loaded.gradient.restype = c_int64
    return Library(loaded.attend, loaded.gradient)


def _without(reason: str) -> Library:
    print(f"interp: native attention is off, torch operators are used instead: {reason}", file=sys.stderr)
    return Library(None, None, reason)


def _compiler() -> str | None:
    candidates = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def cache() -> Path:
    """Where the toolkit keeps what it can make again: `INTERP_CACHE`, else its place among the user's caches."""
    if said := os.environ.get("INTERP_CACHE"):
        return Path(said).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"


def _target(compiler: str) -> str:
    """What -march=native means here, in the compiler's own words."""
    done = subprocess.run(
        [compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull], capture_output=True, text=True, check=False
    )
    return done.stderr


def _compile(compiler: str, library: Path) -> str | None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}"
        made.replace(library)
    return None
