"""A request as the calls of the C++ library that it takes: runs of rows, pointers, shapes of outputs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.errors import AttentionError, known, said
from interp.kernels.native import library as C
from interp.kernels.request import Found, Request

MASK_BYTES = 2**22
BLOCK_ROWS = 48

KINDS: dict[E.Form, tuple[int, str | None]] = {
    E.Temperature: (1, "value"),
    E.BiasKeys: (2, "amount"),
    E.Emphasize: (3, "amount"),
    E.MaskKeys: (4, None),
    E.Redistribute: (5, "fraction"),
    (E.Blend, "identity"): (6, "amount"),
    (E.Blend, "uniform"): (7, "amount"),
    E.Gate: (8, "value"),
}
"""Numbers of `Kind` in native.h, and which field of the edit is its one number."""

OUTPUTS = {
    **{n: (n,) for n in ("entropy", "max", "distance", "first", "previous", "self", "sink", "argmax")},
    **{n: (n,) for n in ("mass", "received", "seen")},
    "lse": (), "topk": ("topk", "topk_keys"), "received_mean": ("received", "seen"),
}  # fmt: skip
"""What the library writes for each statistic, in addition to the log-sum-exp, which it always writes."""

FIELDS = {"max": "largest", "_lse": "lse"}
"""Names of the library where they differ from ours."""


class Shared:
    """What every run of rows reads, as the library wants it; kept alive here."""

    def __init__(self, made: Request, q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None) -> None:
        self.made, self.q = made, q.detach()
        self.k = k.detach().contiguous()
        self.v = None if v is None else v.detach().contiguous()
        self.sinks = None if sinks is None else sinks.detach().contiguous()
        self.first_key = None if made.first is None else made.first.contiguous()
        self.places = None if made.places is None else made.places.contiguous()
        sets = [made.key_sets[s.argument].expand(made.batch, -1) for s in made.stats if s.kind == "mass"]
        self.sets = torch.stack(sets).byte().contiguous() if sets else None
        self.edits = [_described(made, e) for e in made.edits]


def _described(made: Request, edit: E.Edit) -> dict[str, Tensor | int | None]:
    kind, field_ = known(KINDS, edit.form, "edit")
    number = torch.as_tensor(0.0 if field_ is None else getattr(edit, field_)).float().detach()
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
        "value": number.expand(made.heads).contiguous(),
    }


@dataclass(frozen=True, eq=False)
class Run:
    """Rows `at` with the first and last key each sees, and for other masks which keys and with what bias."""

    at: slice
    low: Tensor
    high: Tensor
    visible: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rows(self) -> int:
        return int(self.at.stop - self.at.start)


def runs(made: Request) -> Iterator[Run]:
    """One run where the mask is one run of keys per row, else as many as keep its part of the mask small."""
    every, one = made.positions, made.positions[:1]
    found = None if made.adds else made.mask.interval(every, made.keys)
    if found is not None:
        yield Run(slice(0, len(every)), *found)
        return
    j = torch.arange(made.keys)
    seen = made.mask.visible(one, j)
    step = max(1, MASK_BYTES // (seen.shape[0] * seen.shape[1] * made.keys))
    for a in range(0, len(every), step):
        i = every[a : a + step]
        low, high = _reaches(made, i)
        yield Run(slice(a, a + len(i)), low, high, made.mask.visible(i, j).byte(), made.mask.additive(i, j))


def _reaches(made: Request, i: Tensor) -> tuple[Tensor, Tensor]:
    """The keys outside which nothing is seen, one span for the rows of each block."""
    blocks = [block.tolist() for block in i.split(BLOCK_ROWS)]
    spans = torch.tensor([made.mask.reach(x[0], x[-1], made.keys) for x in blocks])
    each = spans.repeat_interleave(BLOCK_ROWS, 0)[: len(i)].clamp(0, made.keys)
    return each[:, 0][None], each.amax(1)[None]


@dataclass(eq=False)
class Prepared:
    """A call with all it reads, and the tensors behind its pointers."""

    call: C.CallStruct
    alive: list[Tensor] = field(default_factory=list)

    def give(self, name: str, x: Tensor | None, *, to: ctypes.Structure | None = None) -> None:
        if x is not None:
            whole = x.contiguous()
            self.alive.append(whole)
            point(self.call if to is None else to, name, whole)

    def fill(self, outputs: Mapping[str, Tensor]) -> None:
        """Where the results go; these are contiguous and stay with the caller."""
        for name, x in outputs.items():
            point(self.call, FIELDS.get(name, name), x)


def point(struct: ctypes.Structure, name: str, x: Tensor) -> None:
    """Set a pointer that the struct has: ctypes would take any name and the library never see it."""
    if not hasattr(type(struct), name):
        raise AttentionError(f"the library knows no {name!r} in {type(struct).__name__}")
    setattr(struct, name, x.data_ptr())


def prepared(shared: Shared, run: Run) -> Prepared:
    """The inputs of one run of rows."""
    made, found = shared.made, Prepared(C.CallStruct())
    call = found.call
    _sizes(made, call, run.rows)
    for name in ("k", "v", "sinks", "sets", "places", "first_key"):
        found.give(name, getattr(shared, name))
    found.give("q", shared.q[:, :, run.at])
    found.give("low", run.low.to(torch.int32))
    found.give("high", run.high.to(torch.int32))
    found.give("position", made.positions[run.at])
    found.give("visible", run.visible)
    found.give("bias", None if run.bias is None else run.bias.detach().float())
    call.interval_batch = int(run.low.shape[0] > 1)
    for name, x in (("visible", run.visible), ("bias", run.bias)):
        if x is not None:
            heads, size = x.shape[1], x.shape[2] * x.shape[3]
            setattr(call, name + "_batch", heads * size if x.shape[0] > 1 else 0)
            setattr(call, name + "_head", size if heads > 1 else 0)
    call.edits, call.n_edits = _edits(shared, run.at, found.alive), len(shared.edits)
    return found


def _sizes(made: Request, call: C.CallStruct, rows: int) -> None:
    call.batch, call.heads, call.kv_heads, call.keys = made.batch, made.heads, made.k.shape[1], made.keys
    call.rows, call.d, call.dv = rows, made.q.shape[-1], 0 if made.v is None else made.v.shape[-1]
    call.scale, call.softcap, call.threads = made.scale, made.softcap or 0.0, torch.get_num_threads()
    call.n_sets = sum(s.kind == "mass" for s in made.stats)
    call.k_top = next((s.k for s in made.stats if s.kind == "topk"), 0)
    call.axes = 0 if made.places is None else made.places.shape[1]
    call.segments = segments(rows)


def segments(rows: int) -> int:
    """Parts of the rows that have sums of their own: the same on every machine, so sums are."""
    return min(4, -(-rows // 48))


def _edits(shared: Shared, at: slice, alive: list[Tensor]) -> ctypes.Array[C.EditStruct]:
    found = (C.EditStruct * max(1, len(shared.edits)))()
    for slot, edit in zip(found, shared.edits, strict=False):
        for name, x in edit.items():
            if isinstance(x, Tensor):
                whole = (x[:, at] if name == "rows" else x).contiguous()
                alive.append(whole)
                point(slot, name, whole)
                if name in ("rows", "keys", "target"):
                    setattr(slot, name + "_batch", int(len(whole) > 1))
            elif x is not None:
                setattr(slot, name, x)
    return found


def outputs(made: Request, rows: int) -> Found:
    """Room for what a run of rows gives, under the names of `FIELDS`."""
    shape, parts = (made.batch, made.heads, rows), segments(rows)
    out = {"_lse": torch.empty(shape), "blind": torch.zeros((parts, *shape[:2]), dtype=torch.long)}
    out["unmoved"] = torch.zeros_like(out["blind"])
    if made.v is not None:
        out["z"] = torch.empty(*shape, made.v.shape[-1])
    for name in written(made):
        if name in ("received", "seen"):
            out[name] = torch.zeros(parts, *shape[:2], made.keys, dtype=torch.long if name == "seen" else None)
        elif name == "mass":
            out[name] = torch.empty(sum(s.kind == "mass" for s in made.stats), *shape)
        elif name in ("topk", "topk_keys"):
            k = next(s.k for s in made.stats if s.kind == "topk")
            out[name] = torch.empty(*shape, k, dtype=torch.long if name == "topk_keys" else None)
        else:
            out[name] = torch.empty(shape, dtype=torch.long if name == "argmax" else None)
    return out


def written(made: Request) -> list[str]:
    """What the library must write for the statistics, once each."""
    return list(dict.fromkeys(n for s in made.stats for n in known(OUTPUTS, s.kind, "statistic")))


def done(made: Request, status: int) -> None:
    """Raise where the library met an edit of a kind that it does not know, and did nothing."""
    if status:
        name = said(made.edits[status - 1].form)
        raise AttentionError(f"the compiled library does not know what edit {name} is; native.h and KINDS differ")
