"""`impl="triton"`: the Triton kernels, for GPUs, and for tests under Triton's interpreter.

One launch gives z, log-sum-exp, entropy, the largest weights and their keys, distance and up to 16 masses; a second,
key-major one what keys receive; single entries (first, previous, self) are gathers. Gradients of all of these but
`received` go back through two more. Few rows over many keys, as in decoding, take the query heads of a kv head together
and are split over the keys. Temperatures, key biases, emphasis and key masks happen inside the loop. A redistribution
is one launch per cell of keys (source, target, rest), each over the span of its keys; a blend to uniform is one more.
Of masks that are not one run of keys per row only the blocks that some row sees are visited. Given the log-sum-exp of
another kernel there is no forward, only sweeps over q k.

Nothing here has been run on a GPU yet: it is tested in the interpreter (fp32, fp16; its bf16 is wrong without an error
and is refused), and compiled ahead for sm_80, sm_90 and sm_100.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.abilities import ANY, Abilities
from interp.kernels.errors import known
from interp.kernels.gpu import after, entries, launch, visits
from interp.kernels.gpu.after import Blended, Cell
from interp.kernels.gpu.configurations import WIDEST
from interp.kernels.gpu.operands import KEY_EDITS, OF_KEYS, SETS, Part, TritonCall, key_edits, prepared
from interp.kernels.request import Computed, Found, Request
from interp.kernels.stats import Stat, ratio

MOST = 8
CELLS = 16


def able() -> Abilities:
    """On a GPU; under the interpreter on a CPU too, in the dtypes that it has right."""
    return INTERPRETED if launch.interpreted() else COMPILED


def limits(made: Request) -> str | None:
    """Why this file cannot compute a request of what it knows."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if max(x.shape[-1] for x in (made.q, made.v) if x is not None) > WIDEST:
        return f"a head is wider than {WIDEST}"
    return _limits_of_statistics(made) or _limits_of_edits(made) or _limits_of_lse(made) or visits.limits(made)


def declines(made: Request) -> str | None:
    """The interpreter, which is for tests."""
    return "interpreted; only when asked for by name" if made.q.device.type != "cuda" else None


def _limits_of_statistics(made: Request) -> str | None:
    most = max((s.k for s in made.stats if s.kind == "topk"), default=0)
    if most > MOST:
        return f"topk:{most}, where at most {MOST} are kept"
    if sum(s.kind == "mass" for s in made.stats) > SETS:
        return f"more than {SETS} masses"
    if made.gradient() and made.wants("received", "received_mean"):
        return "a gradient is wanted, and received attention has none here"
    return None


def _limits_of_edits(made: Request) -> str | None:
    if len(key_edits(made)) > KEY_EDITS:
        return f"more than {KEY_EDITS} edits of keys"
    if len(after.cells(made)) > CELLS:
        return f"redistributions that cut the keys into more than {CELLS} cells"
    if made.gradient() and after.blends(made) and made.wants("entropy", "max", "topk"):
        return "a gradient is wanted, and entropy, max and topk have none here after a blend"
    return None


def _limits_of_lse(made: Request) -> str | None:
    """Given the log-sum-exp there is no forward, only the sweeps."""
    if made.lse is None:
        return None
    if made.v is not None or made.gradient() or after.redistributions(made) or after.blends(made):
        return "a log-sum-exp is given, and with v, a gradient, Redistribute or Blend it would be computed again"
    named = sorted({s.kind for s in made.stats if s.kind in ("mass", "distance")})
    return f"a log-sum-exp is given, and {' and '.join(named)} would compute it again" if named else None


def attend(made: Request) -> Computed:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    call = prepared(made)
    found = _weighed(call)
    z = after.gated(made, found.linear["z"]).to(made.q.dtype) if made.v is not None else None
    stats = _statistics(call, found)
    counts = {"blind": (~found.sees).sum(), "unmoved": found.unmoved}
    return z, found.lse, stats, counts


@dataclass(frozen=True, eq=False)
class _Weighed:
    """All that came out of the row launches, with sinks, redistributions and blends in it; `factor` is a logarithm."""

    lse: Tensor
    sink: Tensor
    linear: Found
    cells: Sequence[Cell]
    factor: Tensor
    blend: Blended
    uniform: Tensor
    unmoved: Tensor

    @property
    def sees(self) -> Tensor:
        return self.lse > -torch.inf


def _weighed(call: TritonCall) -> _Weighed:
    made, cells = call.made, after.cells(call.made)
    parts = [_part(call, Part(c.keys)) for c in cells] if made.lse is None else [{"lse": made.lse.float()}]
    joined = after.joined(parts)
    lse = after.total(joined["lse"])
    sees = lse > -torch.inf
    sink, left = after.sink(made, lse)
    plain = after.shares(joined["lse"], lse) + left
    logs, unmoved = after.redistributed(made, cells, plain, sees)
    blend = _blend(call, 1 - sink, sees)
    kept = torch.where(blend.keep > 0, blend.keep, 1.0).log()
    factor = torch.where(blend.keep > 0, logs - plain + left + kept, after.NOWHERE)
    found = parts[0] if after.untouched(made) else after.merged(joined, logs)
    uniform = torch.zeros_like(lse)
    if after.blends(made):
        found, uniform = _after_blends(call, found, blend)
    return _Weighed(lse, sink, found, cells, factor, blend, uniform, unmoved + blend.unmoved)


def _part(call: TritonCall, part: Part) -> Found:
    """One part of the keys; where it was split, put together again."""
    found = launch.forward(call, part)
    if found["lse"].dim() == 3:
        return found
    lse = after.total(found["lse"])
    return after.merged(found, after.shares(found["lse"], lse)) | {"lse": lse}


def _own(call: TritonCall) -> tuple[Tensor, Tensor]:
    """The own key of each row, [1, row], and whether the row sees it, [batch, head, row]."""
    made = call.made
    at = made.positions[None]
    inside = at.clamp(0, made.keys - 1)
    index = inside[:, None, :, None].expand(made.batch, -1, -1, -1)
    return inside, entries.sees(call, at) & ~entries.hidden(call, index).squeeze(-1)


def _blend(call: TritonCall, share: Tensor, sees: Tensor) -> Blended:
    own = _own(call)[1] if any(e.to == "identity" for e in after.blends(call.made)) else sees
    return after.blended(call.made, share, sees, own)


def _after_blends(call: TritonCall, found: Found, blend: Blended) -> tuple[Found, Tensor]:
    """What is linear in the weights, and ln of the number of visible keys (0 where there is none)."""
    made = call.made
    own, linear = _own(call)[0].expand(made.batch, -1), ("z", "mass", "distance")
    found = {
        n: blend.keep.reshape(*blend.keep.shape, *(1,) * (x.dim() - 3)) * x for n, x in found.items() if n in linear
    }
    if made.v is not None:
        v = call.v.gather(2, own[:, None, :, None].expand(-1, call.v.shape[1], -1, call.v.shape[-1]))
        found["z"] = found["z"] + blend.own.unsqueeze(-1) * v.float().repeat_interleave(made.group, 1)
    if "mass" in found and call.sets is not None:
        member = call.sets.gather(2, own.expand(len(call.sets), -1, -1)).movedim(0, -1)[:, None].float()
        member = torch.nn.functional.pad(member, (0, SETS - member.shape[-1]))
        found["mass"] = found["mass"] + blend.own.unsqueeze(-1) * member
    if not any(e.to == "uniform" for e in after.blends(made)):
        return found, torch.zeros_like(blend.even)
    even = _part(call, Part(uniform=True))
    for n in found:
        found[n] = found[n] + _along(blend.even, found[n]) * even[n]
    return found, torch.where(even["lse"] > -torch.inf, even["lse"], 0.0)


def _along(rows: Tensor, like: Tensor) -> Tensor:
    return rows.unsqueeze(-1) if like.dim() > rows.dim() else rows


def _statistics(call: TritonCall, found: _Weighed) -> Found:
    made, stats = call.made, {}
    of = _Read(call, found, _nonlinear(call, found), _by_key(call, found))
    for s in made.stats:
        value = known(STATS, s.kind, "statistic")(s, of)
        stats[s.name] = value
        if s.kind == "topk":
            stats[s.name + ".keys"] = of.ranked["topk.keys"][..., : s.k]
    return stats


@dataclass(frozen=True, eq=False)
class _Read:
    """What statistics are read from: rows, what is not linear in the weights, and what is per key."""

    call: TritonCall
    found: _Weighed
    ranked: Found
    keyed: Found

    def mass(self, name: str) -> Tensor:
        masses = [s.argument for s in self.call.made.stats if s.kind == "mass"]
        return self.found.linear["mass"][..., masses.index(name)]

    def first(self) -> Tensor:
        made = self.call.made
        assert made.first is not None
        return _on_key(self.call, self.found, made.first[:, None].expand(-1, len(made.rows)))

    def on_key(self, back: int) -> Tensor:
        return _on_key(self.call, self.found, self.call.made.positions[None] - back)


STATS: dict[str, Callable[[Stat, _Read], Tensor]] = {
    "lse": lambda s, of: of.found.lse,
    "sink": lambda s, of: of.found.sink,
    "entropy": lambda s, of: of.ranked["entropy"],
    "max": lambda s, of: of.ranked["max"],
    "argmax": lambda s, of: of.ranked["argmax"],
    "topk": lambda s, of: of.ranked["topk"][..., : s.k],
    "distance": lambda s, of: of.found.linear["distance"],
    "first": lambda s, of: of.first(),
    "previous": lambda s, of: of.on_key(1),
    "self": lambda s, of: of.on_key(0),
    "mass": lambda s, of: of.mass(s.argument),
    "received": lambda s, of: of.keyed["received"],
    "seen": lambda s, of: of.keyed["seen"],
    "received_mean": lambda s, of: ratio(of.keyed["received"], of.keyed["seen"]),
}
COMPILED = Abilities(
    masks=ANY,
    edits={E.Temperature, *OF_KEYS, E.Redistribute, *after.BLENDS, E.Gate},
    stats=STATS.keys(),
    options={"softcap", "sinks", "rows", "no v", "width", "lse"},
    gradients={"q", "k", "v", "sinks", "Temperature.value", "Gate.value"},
    dtypes={torch.float32, torch.float16, torch.bfloat16},
    devices={"cuda"},
)
INTERPRETED = replace(COMPILED, devices={"cuda", "cpu"}, dtypes={torch.float32, torch.float16})


def _by_key(call: TritonCall, found: _Weighed) -> Found:
    return launch.received(call, _final(call, found)) if any(s.per_key for s in call.made.stats) else {}


def _nonlinear(call: TritonCall, found: _Weighed) -> Found:
    """Entropy and largest weights: after a blend by a launch of their own; with a gradient from their own scores."""
    made = call.made
    if not made.wants("entropy", "max", "argmax", "topk"):
        return {}
    if after.blends(made) or made.lse is not None:
        return launch.ranked(call, _final(call, found))
    largest = dict(found.linear)
    if call.gradient and "max" in largest:
        at = largest["argmax"].unsqueeze(-1)
        largest["max"] = _entries(call, found, at, at >= 0).squeeze(-1)
    if call.gradient and "topk" in largest:
        largest["topk"] = _entries(call, found, largest["topk.keys"], largest["topk.keys"] >= 0)
    return largest


def _entries(call: TritonCall, found: _Weighed, at: Tensor, seen: Tensor) -> Tensor:
    """Final weights of keys [batch, head or 1, row, n] where seen, before what a blend adds; else 0."""
    at = at.clamp(min=0)
    factor = found.factor[0].unsqueeze(-1)
    if len(found.cells) > 1:
        cell = after.cell_of_key(call, found.cells).long()
        here = cell[:, None, None].expand(-1, *at.shape[1:3], -1).gather(-1, at)
        factor = found.factor.movedim(0, -1).gather(-1, here.expand(-1, call.made.heads, -1, -1))
    lse = torch.where(found.sees, found.lse, 0.0).unsqueeze(-1)
    return entries.weights(call, at, factor - lse, seen & found.sees.unsqueeze(-1))


def _on_key(call: TritonCall, found: _Weighed, at: Tensor) -> Tensor:
    """The weight of one key per row, [1 or batch, row]."""
    made = call.made
    index = at.clamp(0, made.keys - 1)[:, None, :, None].expand(made.batch, -1, -1, -1)
    seen = entries.sees(call, at).unsqueeze(-1) & ~entries.hidden(call, index)
    p = _entries(call, found, index, seen).squeeze(-1)
    if after.blends(made):
        here = (index.squeeze(-1) == made.positions).to(p.dtype)
        p = p + torch.where(
            seen.squeeze(-1) & found.sees, found.blend.even * (-found.uniform).exp() + found.blend.own * here, 0.0
        )
    return p


def _final(call: TritonCall, found: _Weighed) -> dict[str, object]:
    """The final weights as the sweeps take them."""
    made = call.made
    blend, cells = bool(after.blends(made)), len(found.cells) > 1
    even = torch.where(found.sees, found.blend.even * (-found.uniform).exp(), 0.0)
    return {
        "LSE": torch.where(found.sees, found.lse, 0.0).contiguous(), "FACTOR": found.factor.contiguous(),
        "CELL": after.cell_of_key(call, found.cells) if cells else call.q, "CELLS": cells,
        "EVEN": even.contiguous(), "OWN": found.blend.own.contiguous(), "BLEND": blend,
    }  # fmt: skip
