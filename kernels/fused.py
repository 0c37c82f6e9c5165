"""`impl="triton"`: the fused kernels of `triton_forward`, for GPUs, and for tests under Triton's interpreter.

One launch gives z, log-sum-exp, entropy, the largest weight and its key, distance and up to 16 masses; a second,
key-major one what keys receive; single entries (first, previous, self) are two gathers. Few rows over many keys, as in
decoding, are split over the keys, and the parts merged by their log-sum-exp. Temperatures go into q, key biases and key
masks into a bias per head and key, gates and learned sinks into the epilogue. Masks must be one run of keys per row.

Nothing here has been run on a GPU yet: it is tested in the interpreter (fp32, fp16; its bf16 is wrong without an error
and is refused), and compiled ahead for sm_80, sm_90 and sm_100. No gradient, no top-k, no redistribution, blend or
emphasis.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.request import Request
from interp.kernels.stats import ratio

SETS = 16
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Configuration:
    """Tile sizes and launch shape for head widths up to `width`; where and when measured."""

    width: int
    rows: int
    keys: int
    warps: int
    stages: int
    measured: str


CONFIGURATIONS = (
    Configuration(64, 64, 64, 8, 3, "not measured"),
    Configuration(128, 64, 64, 8, 2, "not measured"),
    Configuration(256, 64, 32, 8, 2, "not measured"),
)


def configuration(width: int, rows: int, *, heavy: bool) -> Configuration:
    """The smallest that holds the head; few rows take few at a time, masses and distances smaller tiles."""
    found = next(c for c in CONFIGURATIONS if width <= c.width)
    if heavy:
        found = replace(found, keys=32, rows=found.rows if width <= 64 else 32)
    return replace(found, rows=16, warps=4) if rows <= 16 else found


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def kernels() -> ModuleType:
    """The kernels; interpreted or compiled is settled by the environment when this is first called."""
    from interp.kernels import triton_forward

    return triton_forward


def refuses(made: Request) -> str | None:
    """Why this file cannot compute the request."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if made.q.device.type != "cuda" and not interpreted():
        return f"tensors are on {made.q.device.type} and TRITON_INTERPRET is not 1"
    allowed = (torch.float32, torch.float16) if interpreted() else (torch.float32, torch.float16, torch.bfloat16)
    if made.q.dtype not in allowed:
        return f"{made.q.dtype} is not one of {', '.join(str(x) for x in allowed)}"
    if made.gradient():
        return "a gradient is wanted"
    if made.v is None or max(made.q.shape[-1], made.v.shape[-1]) > CONFIGURATIONS[-1].width:
        return f"v must be given, and heads at most {CONFIGURATIONS[-1].width} wide"
    return _refuses_mask(made) or _refuses_parts(made)


def worthwhile(made: Request) -> str | None:
    """The same, and for choosing: never the interpreter, which is for tests."""
    return refuses(made) or ("interpreted; only when asked for by name" if made.q.device.type != "cuda" else None)


def _refuses_mask(made: Request) -> str | None:
    one = made.positions[:1]
    if made.mask.additive(one, one.clamp(0, made.keys - 1)) is not None:
        return "an additive mask or bias"
    if made.mask.interval(made.positions, made.keys) is None:
        return f"mask {type(made.mask).__name__} is not one run of keys per row"
    return None


def _refuses_parts(made: Request) -> str | None:
    if made.wants("topk"):
        return "topk"
    if made.places is not None and made.wants("distance"):
        return "distances between places"
    if sum(s.kind == "mass" for s in made.stats) > SETS:
        return f"more than {SETS} masses"
    for edit in made.edits:
        if isinstance(edit, E.Redistribute | E.Blend | E.Emphasize):
            return f"{type(edit).__name__} is not fused"
        if isinstance(edit, E.Temperature) and made.softcap is not None:
            return "a temperature after a soft cap"
        if edit.rows is not None and isinstance(edit, E.BiasKeys | E.MaskKeys):
            return f"{type(edit).__name__} on some rows only"
    return None


def attend(made: Request) -> tuple[Tensor | None, Tensor, Found, Found]:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    with torch.no_grad():
        call = _prepared(made)
        found = _merged(_forward(made, call))
        lse = found.pop("lse")
        sees = lse > -torch.inf
        sink = _sink(made, lse, sees)
        z = _gated(made, found.pop("z") * (1 - sink).unsqueeze(-1))
        stats = _statistics(made, call, found, lse, sink)
        counts = {"blind": (~sees).sum(), "unmoved": torch.zeros((), dtype=torch.long, device=lse.device)}
        return z.to(made.q.dtype), lse, stats, counts


@dataclass(frozen=True, eq=False)
class _Prepared:
    q: Tensor
    k: Tensor
    v: Tensor
    low: Tensor
    high: Tensor
    bias: Tensor | None
    sets: Tensor | None
    configuration: Configuration


def _prepared(made: Request) -> _Prepared:
    low, high = made.mask.interval(made.positions, made.keys) or (made.positions, made.positions)
    masses = [made.key_sets[s.argument].expand(made.batch, -1) for s in made.stats if s.kind == "mass"]
    v = made.k if made.v is None else made.v
    return _Prepared(
        q=_tempered(made).contiguous(),
        k=made.k.contiguous(),
        v=v.contiguous(),
        low=low.to(made.q.device, torch.int32).contiguous(),
        high=high.to(made.q.device, torch.int32).contiguous(),
        bias=_key_bias(made),
        sets=torch.stack(masses).to(made.q.device).byte().contiguous() if masses else None,
        configuration=configuration(
            max(made.q.shape[-1], v.shape[-1]), len(made.rows), heavy=bool(masses) or made.wants("distance")
        ),
    )


def _tempered(made: Request) -> Tensor:
    """q over the temperature, which is the score over the temperature where there is no soft cap."""
    q, heads = made.row_q(), torch.arange(made.heads, device=made.q.device)
    for edit in made.edits:
        if isinstance(edit, E.Temperature):
            touched = edit.where(heads, made.rows)
            new = q.float() / E.per_head(edit.value, heads, q.float())
            q = new if touched is None else torch.where(touched, new, q.float())
    return q


def _key_bias(made: Request) -> Tensor | None:
    """What key biases and key masks add, [batch, head, key]."""
    total = None
    heads = torch.arange(made.heads, device=made.q.device)
    for edit in made.edits:
        if not isinstance(edit, E.BiasKeys | E.MaskKeys):
            continue
        amount = edit.amount if isinstance(edit, E.BiasKeys) else -torch.inf
        touched = edit.where(heads, made.rows[:1])
        keys = E.key_set("a key set", edit.keys).to(heads.device)[:, None, :]
        where = keys if touched is None else keys & touched.squeeze(-1)
        if total is None:
            total = torch.zeros(made.batch, made.heads, made.keys, device=heads.device)
        total = torch.where(where, total + amount, total)
    return None if total is None else total.clamp(min=-3e38).contiguous()


def _splits(made: Request, tiles: int, block: int) -> int:
    """Enough programs to fill a GPU when rows are few, and no split under 8 blocks of keys."""
    programs = tiles * made.batch * made.heads
    if programs >= 256 or len(made.rows) > 16:
        return 1
    return max(1, min(64, 256 // programs, made.keys // (8 * block)))


def _forward(made: Request, call: _Prepared) -> Found:
    """Every output for every split of the keys, [split, batch, head, row, ...]."""
    c, rows = call.configuration, len(made.rows)
    tiles = -(-rows // c.rows)
    splits = _splits(made, tiles, c.keys)
    span = -(-made.keys // splits // c.keys) * c.keys if splits > 1 else made.keys
    span = max(span, -(-made.keys // splits))
    shape = (splits, made.batch, made.heads, rows)
    z = torch.empty(*shape, call.v.shape[-1], device=call.q.device)
    wants, far = made.wants("entropy", "max", "argmax"), made.wants("distance")
    rowwise = {n: torch.empty(shape if wanted else (1,), device=z.device) for n, wanted in
               {"lse": True, "entropy": wants, "max": wants, "distance": far}.items()}  # fmt: skip
    at = torch.empty(shape if wants else (1,), dtype=torch.int32, device=z.device)
    mass = torch.empty((*shape, SETS) if call.sets is not None else (1,), device=z.device)
    kernels().forward[(tiles, made.batch * made.heads, splits)](
        call.q, call.k, call.v, call.low, call.high, _or_q(call.bias, call), _or_q(call.sets, call), made.positions,
        z, rowwise["lse"], rowwise["entropy"], rowwise["max"], at, rowwise["distance"], mass,
        made.heads, made.group, rows, made.keys, splits, span, rows if call.low.shape[0] > 1 else 0, made.scale,
        made.softcap or 0.0, **_constants(made, call), DV=call.v.shape[-1], DVP=_padded(call.v.shape[-1]),
        N_SETS=0 if call.sets is None else call.sets.shape[0], STATS=wants, FAR=far, num_warps=c.warps,
        num_stages=c.stages,
    )  # fmt: skip
    found = {"z": z, "lse": rowwise["lse"]}
    if wants:
        found |= {"entropy": rowwise["entropy"], "max": rowwise["max"], "argmax": at.long()}
    return (
        found | ({"distance": rowwise["distance"]} if far else {}) | ({"mass": mass} if call.sets is not None else {})
    )


def _or_q(x: Tensor | None, call: _Prepared) -> Tensor:
    return call.q if x is None else x


def _padded(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _constants(made: Request, call: _Prepared) -> dict[str, object]:
    c, d = call.configuration, made.q.shape[-1]
    exact = call.q.dtype == torch.float32
    return {
        "D": d, "DP": _padded(d), "BM": c.rows, "BN": c.keys, "CAP": made.softcap is not None,
        "BIAS": call.bias is not None, "PRECISION": "ieee" if exact else "tf32",
    }  # fmt: skip


def _merged(parts: Found) -> Found:
    """The splits as one: weights w_c = exp(lse_c - lse)."""
    lse = parts["lse"].logsumexp(0)
    sees = lse > -torch.inf
    w = (parts["lse"] - torch.where(sees, lse, 0.0)).exp()
    found = {"lse": lse, "z": (w.unsqueeze(-1) * parts["z"]).sum(0)}
    if "entropy" in parts:
        share = torch.where(parts["lse"] > -torch.inf, parts["lse"], 0.0)
        found["entropy"] = (w * (torch.where(sees, lse, 0.0) - share + parts["entropy"])).sum(0)
        found["max"], best = (w * parts["max"]).max(0)
        found["argmax"] = torch.where(sees, parts["argmax"].gather(0, best[None])[0], -1)
    if "distance" in parts:
        found["distance"] = (w * parts["distance"]).sum(0)
    if "mass" in parts:
        found["mass"] = (w.unsqueeze(-1) * parts["mass"]).sum(0)
    return found


def _sink(made: Request, lse: Tensor, sees: Tensor) -> Tensor:
    if made.sinks is None:
        return torch.zeros_like(lse)
    own = made.sinks.to(lse)[None, :, None]
    return torch.where(sees, torch.sigmoid(own - torch.where(sees, lse, 0.0)), 1.0)


def _gated(made: Request, z: Tensor) -> Tensor:
    heads = torch.arange(made.heads, device=z.device)
    for edit in made.edits:
        if isinstance(edit, E.Gate):
            touched, new = edit.where(heads, made.rows), z * E.per_head(edit.value, heads, z)
            z = new if touched is None else torch.where(touched, new, z)
    return z


def _statistics(made: Request, call: _Prepared, found: Found, lse: Tensor, sink: Tensor) -> Found:
    share, stats = 1 - sink, {}
    masses = [s.argument for s in made.stats if s.kind == "mass"]
    keyed = _received(made, call, lse, share) if any(s.per_key for s in made.stats) else {}
    for s in made.stats:
        if s.kind in ("lse", "sink"):
            stats[s.name] = lse if s.kind == "lse" else sink
        elif s.kind == "entropy":
            stats[s.name] = share * found["entropy"] - torch.xlogy(share, share)
        elif s.kind == "mass":
            stats[s.name] = share * found["mass"][..., masses.index(s.argument)]
        elif s.kind in ("first", "previous", "self"):
            stats[s.name] = share * _single(made, call, s.kind, lse)
        elif s.per_key:
            stats[s.name] = ratio(keyed["received"], keyed["seen"]) if s.kind == "received_mean" else keyed[s.kind]
        else:
            stats[s.name] = found[s.kind] if s.kind == "argmax" else share * found[s.kind]
    return stats


def _single(made: Request, call: _Prepared, kind: str, lse: Tensor) -> Tensor:
    """One weight per row, from its own score."""
    at = made.positions - (1 if kind == "previous" else 0)
    at = at.expand(made.batch, -1) if kind != "first" or made.first is None else made.first[:, None].expand(-1, len(at))
    seen = ((at >= call.low) & (at < call.high))[:, None]
    index = at.clamp(0, made.keys - 1)
    k = call.k.gather(2, index[:, None, :, None].expand(-1, call.k.shape[1], -1, call.k.shape[-1]))
    s = (call.q.float() * k.repeat_interleave(made.group, 1).float()).sum(-1) * made.scale
    if made.softcap is not None:
        s = made.softcap * torch.tanh(s / made.softcap)
    if call.bias is not None:
        s = s + call.bias.gather(2, index[:, None].expand(-1, made.heads, -1))
    return torch.where(seen & (lse > -torch.inf), (s - torch.where(lse > -torch.inf, lse, 0.0)).exp(), 0.0)


def _received(made: Request, call: _Prepared, lse: Tensor, share: Tensor) -> Found:
    c = call.configuration
    found = torch.empty(made.batch, made.heads, made.keys, device=call.q.device)
    seen = torch.empty(found.shape, dtype=torch.int32, device=call.q.device)
    kernels().received[(-(-made.keys // c.keys), made.batch * made.heads)](
        call.q, call.k, call.low, call.high, _or_q(call.bias, call), lse.contiguous(), share.contiguous(), found, seen,
        made.heads, made.group, len(made.rows), made.keys, len(made.rows) if call.low.shape[0] > 1 else 0, made.scale,
        made.softcap or 0.0, **_constants(made, call), num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    return {"received": found, "seen": seen.long()}
