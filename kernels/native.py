"""The C++ version for CPUs: `native.cpp`, compiled on first use and kept in the user's cache.

One pass gives z, log-sum-exp and every statistic, at or below the time of torch's fused attention alone, with all
edits. bf16 and fp16 are widened to fp32 first: sums are fp32 anyway, and CPUs without fp16 arithmetic are hundreds of
times slower in it. Masks that are one run of keys per row (causal, windows, prefixes, padding, sorted documents) go in
one call; any other goes in runs of rows whose part of the mask is small. No gradient: `rows` has it. The library's name
carries a hash of source, compiler and instruction set, so a machine of another kind compiles its own.
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
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.request import Request
from interp.kernels.stats import ratio

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
MASK_BYTES = 2**22

Found = dict[str, Tensor]


class _Edit(Structure):
    _fields_ = [
        ("kind", c_int64),
        *((n, c_void_p) for n in ("heads", "rows", "keys", "target", "value")),
        *((n, c_int64) for n in ("rows_batch", "keys_batch", "target_batch")),
    ]  # fmt: skip


class _Call(Structure):
    _fields_ = [
        *((n, c_int64) for n in ("batch", "heads", "kv_heads", "rows", "keys", "d", "dv")),
        *((n, c_void_p) for n in ("q", "k", "v")),
        ("scale", c_float), ("softcap", c_float),
        ("low", c_void_p), ("high", c_void_p), ("interval_batch", c_int64), ("position", c_void_p),
        ("visible", c_void_p), ("visible_batch", c_int64), ("visible_head", c_int64),
        ("bias", c_void_p), ("bias_batch", c_int64), ("bias_head", c_int64),
        ("sinks", c_void_p), ("edits", POINTER(_Edit)), ("n_edits", c_int64), ("z", c_void_p), ("lse", c_void_p),
        *((n, c_void_p) for n in ("entropy", "largest", "distance", "first", "previous", "self", "sink", "argmax")),
        ("topk", c_void_p), ("topk_keys", c_void_p), ("k_top", c_int64),
        ("sets", c_void_p), ("n_sets", c_int64), ("mass", c_void_p), ("first_key", c_void_p),
        ("places", c_void_p), ("axes", c_int64),
        ("received", c_void_p), ("seen", c_void_p), ("segments", c_int64), ("blind", c_void_p), ("unmoved", c_void_p),
        ("threads", c_int64),
    ]  # fmt: skip


def _compiler() -> str | None:
    candidates = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def _cache() -> Path:
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
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}"
        made.replace(library)
    return None


@dataclass(frozen=True)
class Library:
    """The compiled library, or the reason why there is none."""

    attend: ctypes._NamedFuncPointer | None
    reason: str | None = None


@functools.cache
def library() -> Library:
    """Compiled if need be; says so once when it cannot be."""
    compiler = _compiler()
    if compiler is None:
        return _without("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    digest = hashlib.sha256((SOURCE.read_text() + " ".join(FLAGS) + _target(compiler)).encode()).hexdigest()[:16]
    path = _cache() / f"native-{digest}.so"
    if not path.exists():
        failed = _compile(compiler, path)
        if failed is not None:
            return _without(failed)
    loaded = ctypes.CDLL(str(path))
    for name, structure in (("call_size", _Call), ("edit_size", _Edit)):
        size = getattr(loaded, name)
        size.restype = c_int64
        if size() != ctypes.sizeof(structure):
            return _without(f"{path} and native.py disagree about {name}")
    return Library(loaded.attend)


def _without(reason: str) -> Library:
    print(f"interp: native attention is off, torch operators are used instead: {reason}", file=sys.stderr)
    return Library(None, reason)


def refuses(made: Request) -> str | None:
    """Why this file cannot compute the request."""
    if made.q.device.type != "cpu":
        return f"tensors are on {made.q.device.type}, this is for CPUs"
    if made.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{made.q.dtype} is not fp32, bf16 or fp16"
    if made.gradient():
        return "a gradient is wanted"
    if made.keys >= 2**31:
        return "keys are counted in 32 bits"
    if len([s for s in made.stats if s.kind == "topk"]) > 1:
        return "more than one topk at a time"
    return library().reason


def attend(made: Request) -> tuple[Tensor | None, Tensor, Found, Found]:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    with torch.no_grad():
        shared = _Shared(made)
        parts = [_run(made, shared, *part) for part in _parts(made)]
        joined = {n: _join(n, [p[n] for p in parts]) for n in parts[0]}
    counts = {n: joined.pop(n).sum() for n in ("blind", "unmoved")}
    z, lse = joined.pop("z", None), joined.pop("_lse")
    return (None if z is None else z.to(made.q.dtype)), lse, _finished(made, lse, joined), counts


def _join(name: str, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts).sum(0) if name in ("received", "seen", "blind", "unmoved") else torch.cat(parts, 2)


class _Shared:
    """What every run of rows reads, as the library wants it; kept alive here."""

    def __init__(self, made: Request) -> None:
        self.q = made.row_q().float()
        self.k = made.k.float().contiguous()
        self.v = None if made.v is None else made.v.float().contiguous()
        self.sinks = None if made.sinks is None else made.sinks.float().contiguous()
        self.first = None if made.first is None else made.first.contiguous()
        self.places = None if made.places is None else made.places.contiguous()
        sets = [made.key_sets[s.argument].expand(made.batch, -1) for s in made.stats if s.kind == "mass"]
        self.sets = torch.stack(sets).byte().contiguous() if sets else None
        self.edits = [_described(made, e) for e in made.edits]


KINDS = {
    E.Temperature: 1, E.BiasKeys: 2, E.Emphasize: 3, E.MaskKeys: 4, E.Redistribute: 5, E.Gate: 8,
}  # fmt: skip


def _described(made: Request, edit: E.Edit) -> dict[str, Tensor | int | None]:
    kind = KINDS.get(type(edit)) or (6 if isinstance(edit, E.Blend) and edit.to == "identity" else 7)
    amount = next((getattr(edit, n) for n in ("value", "amount", "fraction") if hasattr(edit, n)), 0.0)
    heads = None
    if edit.heads is not None:
        heads = torch.zeros(made.heads, dtype=torch.uint8)
        heads[list(edit.heads)] = 1
    sets = [E.key_set("a key set", x).byte().contiguous() for x in edit.sets()]
    return {
        "kind": kind,
        "heads": heads,
        "rows": None if edit.rows is None else edit.rows[:, made.rows].byte(),
        "keys": sets[0] if sets else None,
        "target": sets[1] if len(sets) > 1 else None,
        "value": torch.as_tensor(amount, dtype=torch.float32).expand(made.heads).contiguous(),
    }


Part = tuple[slice, Tensor, Tensor, Tensor | None, Tensor | None]


def _parts(made: Request) -> Iterator[Part]:
    """Runs of rows with what they see: rows, first and last key, and for other masks which keys and with what bias."""
    every, one = made.positions, made.positions[:1]
    plain = made.mask.additive(one, one.clamp(0, made.keys - 1)) is None
    found = made.mask.interval(every, made.keys) if plain else None
    if found is not None:
        yield slice(0, len(every)), *found, None, None
        return
    j = torch.arange(made.keys)
    seen = made.mask.visible(one, j)
    step = max(1, MASK_BYTES // (seen.shape[0] * seen.shape[1] * made.keys))
    for a in range(0, len(every), step):
        i = every[a : a + step]
        low, high = torch.zeros_like(i)[None], torch.full_like(i, made.keys)[None]
        yield slice(a, a + len(i)), low, high, made.mask.visible(i, j).byte(), made.mask.additive(i, j)


def _run(
    made: Request, shared: _Shared, at: slice, low: Tensor, high: Tensor, visible: Tensor | None, bias: Tensor | None
) -> Found:
    out = _outputs(made, at.stop - at.start)
    call, alive = _Call(), []

    def give(name: str, x: Tensor | None) -> None:
        if x is not None:
            whole = x.contiguous()
            alive.append(whole)
            setattr(call, name, whole.data_ptr())

    _sizes(made, call, at)
    for name in ("k", "v", "sinks", "sets", "places"):
        give(name, getattr(shared, name))
    give("q", shared.q[:, :, at])
    give("first_key", shared.first)
    give("low", low.to(torch.int32))
    give("high", high.to(torch.int32))
    give("position", made.positions[at])
    give("visible", visible)
    give("bias", None if bias is None else bias.float())
    call.interval_batch = int(low.shape[0] > 1)
    for name, x in (("visible", visible), ("bias", bias)):
        if x is not None:
            heads, size = x.shape[1], x.shape[2] * x.shape[3]
            setattr(call, name + "_batch", heads * size if x.shape[0] > 1 else 0)
            setattr(call, name + "_head", size if heads > 1 else 0)
    call.edits, call.n_edits = _edits(shared, at, alive), len(shared.edits)
    for name, x in out.items():
        setattr(call, _FIELDS.get(name, name), x.data_ptr())
    function = library().attend
    if function is not None:
        function(ctypes.byref(call))
    return _gathered(made, out)


_FIELDS = {"max": "largest", "_lse": "lse"}


def _sizes(made: Request, call: _Call, at: slice) -> None:
    call.batch, call.heads, call.kv_heads, call.keys = made.batch, made.heads, made.k.shape[1], made.keys
    call.rows, call.d, call.dv = at.stop - at.start, made.q.shape[-1], 0 if made.v is None else made.v.shape[-1]
    call.scale, call.softcap, call.threads = made.scale, made.softcap or 0.0, torch.get_num_threads()
    call.n_sets = sum(s.kind == "mass" for s in made.stats)
    call.k_top = next((s.k for s in made.stats if s.kind == "topk"), 0)
    call.axes = 0 if made.places is None else made.places.shape[1]
    call.segments = _segments(call.rows)


def _segments(rows: int) -> int:
    return min(4, -(-rows // 48))


def _edits(shared: _Shared, at: slice, alive: list[Tensor]) -> ctypes.Array[_Edit]:
    found = (_Edit * max(1, len(shared.edits)))()
    for slot, edit in zip(found, shared.edits, strict=False):
        for name, x in edit.items():
            if isinstance(x, Tensor):
                whole = (x[:, at] if name == "rows" else x).contiguous()
                alive.append(whole)
                setattr(slot, name, whole.data_ptr())
                if name in ("rows", "keys", "target"):
                    setattr(slot, name + "_batch", int(len(whole) > 1))
            elif x is not None:
                setattr(slot, name, x)
    return found


def _outputs(made: Request, rows: int) -> Found:
    shape, segments = (made.batch, made.heads, rows), _segments(rows)
    out = {"_lse": torch.empty(shape), "blind": torch.zeros((segments, *shape[:2]), dtype=torch.long)}
    out["unmoved"] = torch.zeros_like(out["blind"])
    if made.v is not None:
        out["z"] = torch.empty(*shape, made.v.shape[-1])
    for s in made.stats:
        if s.kind in ("entropy", "max", "distance", "first", "previous", "self", "sink"):
            out[s.kind] = torch.empty(shape)
        elif s.kind == "argmax":
            out["argmax"] = torch.empty(shape, dtype=torch.long)
        elif s.kind == "topk":
            out["topk"], out["topk_keys"] = torch.empty(*shape, s.k), torch.empty((*shape, s.k), dtype=torch.long)
    sets = sum(s.kind == "mass" for s in made.stats)
    if sets:
        out["mass"] = torch.empty(sets, *shape)
    if made.wants("received", "received_mean"):
        out["received"] = torch.zeros(segments, *shape[:2], made.keys)
    if made.wants("seen", "received_mean"):
        out["seen"] = torch.zeros((segments, *shape[:2], made.keys), dtype=torch.long)
    return out


def _gathered(made: Request, out: Found) -> Found:
    """Under the names of the request; sums over segments taken."""
    found = {n: x.sum(0) if n in ("received", "seen", "blind", "unmoved") else x for n, x in out.items()}
    masses = found.pop("mass", None)
    sets = [s for s in made.stats if s.kind == "mass"]
    if masses is not None:
        found |= {s.name: masses[n] for n, s in enumerate(sets)}
    for s in made.stats:
        if s.kind == "topk":
            found[s.name], found[s.name + ".keys"] = found.pop("topk"), found.pop("topk_keys")
    return found


def _finished(made: Request, lse: Tensor, found: Found) -> Found:
    result = {}
    for s in made.stats:
        if s.kind == "received_mean":
            result[s.name] = ratio(found["received"], found["seen"])
        else:
            result[s.name] = lse if s.kind == "lse" else found[s.name]
        if s.kind == "topk":
            result[s.name + ".keys"] = found[s.name + ".keys"]
    return result
