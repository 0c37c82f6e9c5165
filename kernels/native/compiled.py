"""The C++ version for CPUs: `native.cpp` forward, `native_backward.cpp` its gradient.

One pass gives z, log-sum-exp and every statistic, at or below the time of torch's fused attention alone, with all
edits. bf16 and fp16 are widened to fp32 first: sums are fp32 anyway, and CPUs without fp16 arithmetic are hundreds of
times slower in it. Masks that are one run of keys per row (causal, windows, prefixes, padding, sorted documents) go in
one call; any other goes in runs of rows whose part of the mask is small. Gradients of z and of every statistic flow to
q, k, v, the learned sinks and gates; those of a bias and of a tensor of temperatures do not, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.abilities import ANY, Abilities
from interp.kernels.native.backward import differentiable
from interp.kernels.native.forward import forward
from interp.kernels.native.library import library
from interp.kernels.native.marshal import KINDS, OUTPUTS, Shared
from interp.kernels.request import Computed, Found, Request
from interp.kernels.stats import ratio

ABLE = Abilities(
    masks=ANY,
    edits=KINDS.keys(),
    stats=OUTPUTS.keys(),
    options={"softcap", "bias", "sinks", "rows", "no v", "width", "places"},
    gradients={"q", "k", "v", "sinks", "Gate.value"},
    dtypes={torch.float32, torch.bfloat16, torch.float16},
    devices={"cpu"},
)


def limits(made: Request) -> str | None:
    """Why this file cannot compute a request of what it knows."""
    if made.keys >= 2**31:
        return f"{made.keys} keys, and they are counted in 32 bits"
    if len([s for s in made.stats if s.kind == "topk"]) > 1:
        return "more than one topk at a time"
    return library().reason


def attend(made: Request) -> Computed:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    q, k, v = made.row_q().float(), made.k.float(), None if made.v is None else made.v.float()
    sinks = None if made.sinks is None else made.sinks.float()
    gates = E.only(made.output_edits, E.Gate)
    if made.gradient():
        # The library's gates have no gradient, so they are applied after it.
        ungated = replace(made, edits=made.score_edits + made.moving_edits + made.weight_edits)
        found = differentiable(ungated, q, k, v, sinks)
    else:
        with torch.no_grad():
            found = forward(Shared(made, q, k, v, sinks))
    counts = {n: found.pop(n).sum() for n in ("blind", "unmoved")}
    z, lse = found.pop("z", None), found.pop("_lse")
    if z is not None and made.gradient():
        z = _gated(made, gates, z)
    return (None if z is None else z.to(made.q.dtype)), lse, _finished(made, lse, found), counts


def _gated(made: Request, gates: Iterable[E.Gate], z: Tensor) -> Tensor:
    heads = torch.arange(made.heads)
    for edit in gates:
        touched, new = edit.where(heads, made.rows), z * E.per_head(edit.value, heads, z)
        z = new if touched is None else torch.where(touched, new, z)
    return z


def _finished(made: Request, lse: Tensor, found: Found) -> Found:
    result = {}
    masses = iter(found["mass"]) if "mass" in found else iter(())
    for s in made.stats:
        if s.kind == "received_mean":
            result[s.name] = ratio(found["received"], found["seen"])
        elif s.kind in ("lse", "mass"):
            result[s.name] = lse if s.kind == "lse" else next(masses)
        else:
            result[s.name] = found[s.kind]
        if s.kind == "topk":
            result[s.name + ".keys"] = found["topk_keys"]
    return result
