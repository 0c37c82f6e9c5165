"""Attention as a merge of disjoint spans of keys, each by one call of a flash kernel that returns its log-sum-exp.

With O_c and lse_c of span c, `w_c = exp(lse_c - lse)` is the span's weight and `O = sum_c w_c O_c`, exactly, at about
the cost of one call since the spans are disjoint. So the weight on a key set, its knock-out, its bias, a redistribution
and the attribution to spans need no kernel of our own, and all are differentiable: the kernel's lse carries no
gradient, therefore the backward is written here. It is one call too: a column that is 0 in v, 1 in dO and -dlse in O
turns the kernel's own row sum D = dO.O into D - dlse, which is what the gradient of lse needs.

Limits: torch's CPU flash kernel, v as wide as q, all rows, masks that are full or causal, key sets made of at most 32
runs in all and alike for every example, no soft cap, bias or emphasis; no second derivative. A causal span is a square
for the queries inside it and a rectangle for those after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.abilities import FLOATS, Abilities
from interp.kernels.errors import AttentionError, known
from interp.kernels.masks.symbols import Causal, Full, Mask
from interp.kernels.request import Computed, Request
from interp.kernels.stats import Stat

RUNS, HIDDEN = 32, -1e30

MASKS: dict[type[Mask], bool] = {Full: False, Causal: True}
"""Those known, and whether a query sees keys up to its own only."""


class _Flash(torch.autograd.Function):
    """z and lse [batch, head, query] of one flash call; q, k, v alike in heads and width."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        z, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        ctx.save_for_backward(q, k, v, z, lse)
        ctx.causal, ctx.scale = causal, scale
        return z, lse

    @staticmethod
    def backward(ctx: Any, dz: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise AttentionError("merged attention has no second derivative (create_graph=True); use impl='rows'")
        q, k, v, z, lse = ctx.saved_tensors
        one, minus = torch.ones_like(dlse).to(q.dtype), -dlse.to(q.dtype)
        wide = [_widened(q), _widened(k), _widened(v), _widened(z, minus), lse]
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _widened(dz, one), *wide, 0.0, ctx.causal, scale=ctx.scale
        )
        return *(g[..., : q.shape[-1]] for g in grads), None, None


def _widened(x: Tensor, column: Tensor | None = None) -> Tensor:
    """Eight more features: zeros, the first one as given."""
    wide = torch.nn.functional.pad(x, (0, 8))
    if column is not None:
        wide[..., x.shape[-1]] = column
    return wide


@dataclass(frozen=True, eq=False)
class Spans:
    """Per span of keys [low, high): z [span, batch, head, row, dv] and lse [span, batch, head, row]; heads are query
    heads.
    """

    bounds: tuple[tuple[int, int], ...]
    z: Tensor
    lse: Tensor

    def weights(self, total: Tensor | None = None) -> Tensor:
        """The weight w_c of each span in each row; 0 in rows that see nothing."""
        lse = self.total() if total is None else total
        return _share(self.lse, lse).exp()

    def total(self) -> Tensor:
        return _logsumexp(self.lse)

    def merged(self) -> Tensor:
        """The whole attention."""
        return (self.weights().unsqueeze(-1) * self.z).sum(0)


def _logsumexp(lse: Tensor) -> Tensor:
    top = lse.detach().amax(0)
    top = torch.where(top.isinf(), 0.0, top)
    total = torch.where(lse == -torch.inf, 0.0, (torch.where(lse == -torch.inf, 0.0, lse) - top).exp()).sum(0)
    sees = total > 0
    return torch.where(sees, top + torch.where(sees, total, 1.0).log(), -torch.inf)


def _share(part: Tensor, total: Tensor) -> Tensor:
    """The logarithm of a span's weight; -1e30 where it sees nothing."""
    sees = part > -torch.inf
    apart = torch.where(sees, part, 0.0) - torch.where(total > -torch.inf, total, 0.0)
    return torch.where(sees, apart, HIDDEN)


def spans(q: Tensor, k: Tensor, v: Tensor, *, bounds: Sequence[tuple[int, int]], causal: bool, scale: float) -> Spans:
    """Attention to each span of keys alone, fp32 or fp64; the last query is the last key."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if scale <= 0:  # torch's kernel multiplies the -inf of hidden scores by it
        q, scale = q * scale, 1.0
    found = [
        _causal_span(q, k, v, a, b, scale) if causal else _flash(q, k[:, :, a:b], v[:, :, a:b], scale)
        for a, b in bounds
    ]
    return Spans(tuple(bounds), torch.stack([z for z, _ in found]), torch.stack([lse for _, lse in found]))


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    z, lse = _Flash.apply(q, k, v, causal, scale)
    return z, lse


def _causal_span(q: Tensor, k: Tensor, v: Tensor, low: int, high: int, scale: float) -> tuple[Tensor, Tensor]:
    """Rows before the span see nothing, rows inside it part of it, rows after it all."""
    queries, offset = q.shape[2], k.shape[2] - q.shape[2]
    first, last = (min(max(x - offset, 0), queries) for x in (low, high))
    nothing = q[:, :, :first] * 0
    parts = [(nothing, nothing[..., 0] - torch.inf)]
    if first < last:
        parts.append(_square(q[:, :, first:last], k, v, low, first + offset, last + offset, scale))
    if last < queries:
        parts.append(_flash(q[:, :, last:], k[:, :, low:high], v[:, :, low:high], scale))
    return torch.cat([z for z, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _square(q: Tensor, k: Tensor, v: Tensor, low: int, start: int, end: int, scale: float) -> tuple[Tensor, Tensor]:
    """Queries at positions [start, end) to keys from low up to themselves."""
    z, lse = _flash(q, k[:, :, start:end], v[:, :, start:end], scale, causal=True)
    if start == low:
        return z, lse
    before, lse_before = _flash(q, k[:, :, low:start], v[:, :, low:start], scale)
    both = Spans(((low, start), (start, end)), torch.stack([before, z]), torch.stack([lse_before, lse]))
    return both.merged(), both.total()


def attribution(found: Spans, dz: Tensor) -> tuple[Tensor, Tensor]:
    """To each span [span, batch, head]: the derivative by its log-weight, and the first-order effect of knocking it
    out.

    log_weight = sum_i w_c (dO.O_c - dO.O); knockout = sum_i w_c / (1 - w_c) (dO.O_c - dO.O), the change of the loss
    that leaving the span out makes to first order in O, with its sign turned; computed as w_c (dO.O_c - dO.O_rest) with
    O_rest the attention to the others, which loses nothing where w_c is near 1. There the first form can have the wrong
    sign; rows whose whole weight is on the span have no knock-out and count 0.
    """
    w, by = found.weights(), (dz * found.z).sum(-1)
    apart = (1 - torch.eye(len(w), dtype=w.dtype, device=w.device)).reshape(*(len(w),) * 2, *(1,) * (w.ndim - 1))
    rest, other = (apart * w).sum(1), (apart * (w * by)).sum(1)
    knockout = torch.where(rest > 0, w * (by - other / torch.where(rest > 0, rest, 1.0)), 0.0)
    return (w * (by - (w * by).sum(0))).sum(-1), knockout.sum(-1)


def limits(made: Request) -> str | None:
    """Why this file cannot compute a request of what it knows."""
    if _causal(made) and made.q.shape[2] > made.keys:
        return "more queries than keys under a causal mask"
    if made.weight_edits and made.wants("mass"):
        return "masses of a blended pattern"
    sets = _sets(made)
    if any(len(x) > 1 and not bool((x == x[:1]).all()) for x in sets):
        return "key sets that differ between examples"
    return None if len(_bounds(made)) <= RUNS else f"key sets of more than {RUNS} runs"


def _causal(made: Request) -> bool:
    return known(MASKS, type(made.mask), "mask")


def _sets(made: Request) -> list[Tensor]:
    return [E.key_set("a key set", x) for e in made.edits for x in e.sets()] + list(made.key_sets.values())


def _bounds(made: Request) -> tuple[tuple[int, int], ...]:
    """The runs of keys between which no key set changes."""
    cuts = {0, made.keys}
    for keys in _sets(made):
        cuts |= set((keys[0].int().diff().nonzero().flatten() + 1).tolist())
    ends = sorted(cuts)
    return tuple(itertools.pairwise(ends))


def _members(keys: Tensor, bounds: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Which spans belong to the key set, Bool [span, 1, 1, 1]."""
    first = E.key_set("a key set", keys)[0]
    return torch.tensor([bool(first[a]) for a, _ in bounds], device=like.device).reshape(-1, 1, 1, 1)


def attend(made: Request) -> Computed:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    found = spans(
        _tempered(made),
        made.k,
        made.k if made.v is None else made.v,
        bounds=_bounds(made),
        causal=_causal(made),
        scale=made.scale,
    )
    lse = _edited_lse(made, found)
    total = _logsumexp(lse)
    sees = total > -torch.inf
    sink, share = _sink(made, total, sees)
    weights, unmoved = _redistributed(made, found, _share(lse, total) + share, sees)
    merged = Merged(made, found, total, sink, weights)
    stats = {s.name: known(STATS, s.kind, "statistic")(s, merged) for s in made.stats}
    z, stayed = _blended(made, found, (weights.unsqueeze(-1) * found.z).sum(0), lse, share.exp(), sees)
    counts = {"blind": (~sees).sum(), "unmoved": unmoved + stayed}
    return _gated(made, z).to(made.q.dtype), total, stats, counts


@dataclass(frozen=True, eq=False)
class Merged:
    """What statistics are read from: log-sum-exp and sink [batch, head, row], weights [span, batch, head, row]."""

    made: Request
    found: Spans
    lse: Tensor
    sink: Tensor
    weights: Tensor

    def mass(self, name: str) -> Tensor:
        return (self.weights * _members(self.made.key_sets[name], self.found.bounds, self.weights)).sum(0)


STATS: dict[str, Callable[[Stat, Merged], Tensor]] = {
    "lse": lambda s, of: of.lse,
    "sink": lambda s, of: of.sink,
    "mass": lambda s, of: of.mass(s.argument),
}


def _touched(made: Request, edit: E.Edit) -> Tensor:
    """Bool, broadcasting to [batch, head, row]."""
    found = edit.where(torch.arange(made.heads, device=made.q.device), made.rows)
    return torch.ones(1, 1, 1, dtype=torch.bool, device=made.q.device) if found is None else found.squeeze(-1)


def _tempered(made: Request) -> Tensor:
    """q with temperatures in it, which divide whole scores."""
    q = made.q.to(made.accumulate)
    heads = torch.arange(made.heads, device=q.device)
    for edit in made.score_edits:
        if isinstance(edit, E.Temperature):
            q = torch.where(_touched(made, edit).unsqueeze(-1), q / E.per_head(edit.value, heads, q), q)
    return q


def _edited_lse(made: Request, found: Spans) -> Tensor:
    lse = found.lse
    for edit in made.score_edits:
        lse = known(OF_SCORES, edit.form, "edit")(edit, made, found, lse)
    return lse


def _added(edit: E.BiasKeys | E.MaskKeys, amount: float, made: Request, found: Spans, lse: Tensor) -> Tensor:
    return torch.where(_members(edit.keys, found.bounds, lse) & _touched(made, edit), lse + amount, lse)


OF_SCORES: dict[E.Form, Callable[..., Tensor]] = {
    E.Temperature: lambda edit, made, found, lse: lse,
    E.BiasKeys: lambda edit, made, found, lse: _added(edit, edit.amount, made, found, lse),
    E.MaskKeys: lambda edit, made, found, lse: _added(edit, -torch.inf, made, found, lse),
}
"""What they do to the log-sum-exp of spans; a temperature is in q already."""


def _sink(made: Request, total: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves."""
    if made.sinks is None:
        return torch.zeros_like(total), torch.zeros_like(total)
    above = made.sinks.to(total)[None, :, None] - torch.where(sees, total, 0.0)
    return torch.where(sees, above.sigmoid(), 1.0), torch.where(sees, torch.nn.functional.logsigmoid(-above), 0.0)


def _redistributed(made: Request, found: Spans, logs: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of spans from their logarithms, in which no target is too small to divide by."""
    unmoved = torch.zeros((), dtype=torch.long, device=logs.device)
    for edit in E.only(made.moving_edits, E.Redistribute):
        source, target = (_members(x, found.bounds, logs) for x in edit.sets())
        l_source, l_target = (torch.where(x, logs, HIDDEN).logsumexp(0) for x in (source, target))
        able, asked = l_target > HIDDEN / 2, _touched(made, edit) & sees
        more = l_source + _log(edit.fraction) - torch.where(able, l_target, 0.0)
        new = torch.where(target, logs + torch.logaddexp(torch.zeros_like(more), more), logs)
        new = torch.where(source, (logs + _log(1 - edit.fraction)).clamp(min=HIDDEN), new)
        logs = torch.where(asked & able, new, logs)
        unmoved = unmoved + (asked & ~able).sum()
    return logs.exp(), unmoved


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _blended(made: Request, found: Spans, z: Tensor, lse: Tensor, total: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    stayed = torch.zeros((), dtype=torch.long, device=z.device)
    for edit in E.only(made.weight_edits, E.Blend):
        ideal, able = known(TOWARD, edit.form, "edit")(made, found, lse)
        asked = _touched(made, edit) & sees
        new = z + edit.amount * (total.unsqueeze(-1) * ideal - z)
        z = torch.where((asked & able).unsqueeze(-1), new, z)
        stayed = stayed + (asked & ~able).sum()
    return z, stayed


def _values(made: Request, like: Tensor) -> Tensor:
    v = made.k if made.v is None else made.v
    return v.to(like).repeat_interleave(made.group, 1)


def _own(made: Request, found: Spans, lse: Tensor) -> tuple[Tensor, Tensor]:
    at = made.positions
    of_span = torch.bucketize(at, torch.tensor([b for _, b in found.bounds], device=at.device), right=True)
    seen = (lse > -torch.inf).movedim(0, -1).gather(-1, of_span[:, None].expand(*lse.shape[1:], 1)).squeeze(-1)
    return _values(made, lse)[:, :, at], seen


def _uniform(made: Request, found: Spans, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of v over the keys each row still sees, from running sums of v."""
    running = torch.nn.functional.pad(_values(made, lse).cumsum(2), (0, 0, 1, 0))
    ends = made.positions + 1 if _causal(made) else torch.full_like(made.positions, made.keys)
    total, count = torch.zeros_like(found.z[0]), torch.zeros_like(lse[0])
    for c, (a, b) in enumerate(found.bounds):
        upto = ends.clamp(a, b)
        seen = (lse[c] > -torch.inf).to(lse)
        total = total + seen.unsqueeze(-1) * (running[:, :, upto] - running[:, :, a : a + 1])
        count = count + seen * (upto - a)
    return total / count.clamp(min=1).unsqueeze(-1), count > 0


def _gated(made: Request, z: Tensor) -> Tensor:
    heads = torch.arange(made.heads, device=z.device)
    for edit in E.only(made.output_edits, E.Gate):
        z = torch.where(_touched(made, edit).unsqueeze(-1), z * E.per_head(edit.value, heads, z), z)
    return z


TOWARD: dict[E.Form, Callable[[Request, Spans, Tensor], tuple[Tensor, Tensor]]] = {
    (E.Blend, "identity"): _own,
    (E.Blend, "uniform"): _uniform,
}
"""What z a blend goes to, and in which rows it can."""

ABLE = Abilities(
    masks=MASKS.keys(),
    edits={*OF_SCORES, E.Redistribute, *TOWARD, E.Gate},
    stats=STATS.keys(),
    options={"sinks"},
    gradients={"q", "k", "v", "sinks", "Temperature.value", "Gate.value"},
    dtypes=FLOATS,
    devices={"cpu"},
)
