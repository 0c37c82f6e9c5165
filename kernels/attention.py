"""Attention that also tells what the heads did, and changes it: the one call, and the choice of who computes it.

    out = attend(q, k, v, mask=Causal(), stats=["entropy", "received"])
    out.z, out.lse, out.stats["entropy"], out.impl

Grouped heads are given ungrouped (q has the query heads, k and v the kv heads). Rows are queries; with fewer queries
than keys the last query is the last key. Names of statistics are in `stats.py`, edits in `edits.py`, masks in `masks/`.
What each implementation can do is written in its own `Abilities`, and nothing else is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.kernels.abilities import Abilities
from interp.kernels.cpu import merge, reference, sweep, tiles
from interp.kernels.edits import Edit
from interp.kernels.errors import AttentionError
from interp.kernels.gpu import fused
from interp.kernels.masks.symbols import Mask
from interp.kernels.native import compiled
from interp.kernels.request import Computed, Request, Rows, request
from interp.kernels.stats import Reduction
from interp.kernels.stats import reduce_groups as grouped


@dataclass(frozen=True, eq=False)
class Attended:
    """z [batch, head, row, dv] in the dtype of q (None where no v was given); lse [batch, head, row] and statistics in
    fp32.

    `lse` is natural, of the edited scores, without the learned sink, -inf for rows that see nothing. `counts` are
    integer tensors: `blind` rows (over batch and heads) that see nothing, `unmoved` rows an edit could not change.
    `impl` is who computed it.
    """

    z: Tensor | None
    lse: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    impl: str = ""
    counts: dict[str, Tensor] = field(default_factory=dict)


def _reference(made: Request) -> Computed:
    z, lse, found, counts = reference.attend(made, dtype=torch.float64)
    wanted = {n: x.to(made.accumulate) if x.is_floating_point() else x for n, x in found.items()}
    return (None if z is None else z.to(made.q.dtype)), lse.to(made.accumulate), wanted, counts


def _nothing(made: Request) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """Who can compute a request. `able` says what it declares; `limits` why it cannot compute something of that all the
    same, and `declines` why it should not be chosen for it, each None where there is no reason.
    """

    name: str
    able: Callable[[], Abilities]
    run: Callable[[Request], Computed]
    limits: Callable[[Request], str | None] = _nothing
    declines: Callable[[Request], str | None] = _nothing

    def cannot(self, made: Request) -> str | None:
        """Why it raises when asked for by name."""
        return self.able().refusal(made) or self.limits(made)

    def passed_over(self, made: Request) -> str | None:
        """Why `auto` does not take it."""
        return self.cannot(made) or self.declines(made)


IMPLEMENTATIONS = [
    Implementation("triton", fused.able, fused.attend, fused.limits, fused.declines),
    Implementation("native", lambda: compiled.ABLE, compiled.attend, compiled.limits),
    Implementation("merge", lambda: merge.ABLE, merge.attend, merge.limits),
    Implementation("sweep", lambda: sweep.ABLE, sweep.attend, declines=sweep.declines),
    Implementation("rows", lambda: tiles.ABLE, tiles.attend),
    Implementation(
        "reference", lambda: reference.ABLE, _reference, declines=lambda made: "dense; only when asked for by name"
    ),
]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    edits: Iterable[Edit] | Edit | None = None,
    stats: Iterable[str] | str | None = None,
    rows: Rows = None,
    key_sets: Mapping[str, Tensor] | None = None,
    places: Tensor | None = None,
    first: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_groups: Reduction | None = None,
    impl: str = "auto",
) -> Attended:
    """Attention of q [batch, head, query, d] to k, v [batch, kv head, key, d], with statistics, edited.

    mask: symbols, a Bool tensor (True visible) or an additive one, broadcasting to [batch, head, query, key]; None sees
    all. scale: d ** -0.5 unless said. softcap c: c tanh(s / c). bias: added to the capped scores. sinks: [head], one
    more score per row that takes weight and has no value. rows: compute these queries only. key_sets: Bool [key] or
    [batch, key] by name, for `mass:NAME`. places: [key, axis] coordinates for `distance`. first: [batch], the first
    real key, else read off the mask. lse: [batch, head, row], the log-sum-exp of these rows' edited scores from another
    forward pass, where one is known: `sweep` then takes a pass less. impl: one of `names()`; an explicit one is used or
    raises, `auto` takes the first of `names()` that can and is worth while. On CUDA tensors that is `triton`, which has
    been tested in its interpreter and compiled, but not yet run on a GPU: compare with `impl="rows"` there.
    """
    made = request(
        q, k, v, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks, edits=edits, stats=stats, rows=rows,
        key_sets=key_sets, places=places, first=first, lse=lse,
    )  # fmt: skip
    chosen = _choose(made, impl)
    z, lse, found, counts = chosen.run(made)
    if reduce_groups is not None:
        found = grouped(found, k.shape[1], reduce_groups)
    return Attended(z, lse, found, chosen.name, counts)


def names() -> list[str]:
    """The implementations there are, the fastest first."""
    return [i.name for i in IMPLEMENTATIONS]


def _choose(made: Request, impl: str) -> Implementation:
    if impl == "auto":
        return _fastest(made)
    found = next((i for i in IMPLEMENTATIONS if i.name == impl), None)
    if found is None:
        raise AttentionError(f"no implementation {impl!r}; there are auto, {', '.join(names())}")
    reason = found.cannot(made)
    if reason is not None:
        raise AttentionError(f"impl={impl!r} cannot compute this: {reason}. Use impl='auto', or see explain(...)")
    return found


def _fastest(made: Request) -> Implementation:
    """The first that is worth while, else the first that can."""
    reasons, able = {}, []
    for i in IMPLEMENTATIONS:
        reason = i.cannot(made)
        if reason is not None:
            reasons[i.name] = reason
        elif i.declines(made) is None:
            return i
        else:
            able.append(i)
    if not able:
        raise AttentionError(
            "no implementation can compute this: " + "; ".join(f"{n}: {x}" for n, x in reasons.items())
        )
    return able[0]


def explain(q: Tensor, k: Tensor, v: Tensor | None, **arguments: object) -> dict[str, str]:
    """For the arguments of `attend`: by implementation, "taken" or why it was not.

    On CUDA tensors `triton` is preferred, though it has not yet run on a GPU (its tests use the interpreter).
    """
    impl = str(arguments.pop("impl", "auto"))
    arguments.pop("reduce_groups", None)
    made = request(q, k, v, **arguments)  # type: ignore[arg-type]
    if impl == "auto":
        reasons = {i.name: i.passed_over(made) for i in IMPLEMENTATIONS}
        taken = _fastest(made).name
    else:
        reasons = {i.name: i.cannot(made) for i in IMPLEMENTATIONS}
        taken = impl if impl in reasons and reasons[impl] is None else ""
    return {n: "taken" if n == taken else reason or f"could, but {taken} is taken" for n, reason in reasons.items()}
