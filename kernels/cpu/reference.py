"""Attention by its definition: dense, in fp64 or fp32. It defines what the other implementations must give.

`EDITS` and `STATS` hold the definition of every edit and statistic there is; one that is added here is computed from
then on, by this file until a faster one knows it. An edit is a function of itself, the request and what its stage acts
on, as if it touched every head and row:

1 to 4   scores, visible -> scores, visible
5        ln p, visible, share -> ln p, able        share: what the learned sink leaves of a row
6        p, visible, share -> p, able              able: Bool [..., row, 1], rows that can be changed
7        z -> z

Cost: tensors of batch x head x row x key, several of them. For tests, and for patterns of small inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.abilities import ANY, FLOATS, Abilities
from interp.kernels.errors import known
from interp.kernels.request import Computed, Request
from interp.kernels.stats import Stat, ratio

HIDDEN = -1e30


@dataclass(frozen=True, eq=False)
class Pattern:
    """The final weights [batch, head, row, key] of a request, and what statistics are read from."""

    made: Request
    p: Tensor
    visible: Tensor
    lse: Tensor
    sink: Tensor
    unmoved: Tensor


def attend(request: Request, *, dtype: torch.dtype = torch.float64) -> Computed:
    """z, log-sum-exp, statistics and counts, all in `dtype` (z too)."""
    found = _pattern(request, dtype)
    z = None if request.v is None else _outputs(request, found.p @ _spread(request.v.to(dtype), request.group))
    stats = {s.name: known(STATS, s.kind, "statistic")(s, found) for s in request.stats}
    for s in request.stats:
        if s.kind == "topk":
            stats[s.name + ".keys"] = _topk(s, found)[1]
    return z, found.lse, stats, {"blind": (~found.visible.any(-1)).sum(), "unmoved": found.unmoved}


def pattern(request: Request, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The final weights [batch, head, row, key]."""
    return _pattern(request, dtype).p


def _pattern(request: Request, dtype: torch.dtype) -> Pattern:
    scores, visible = edited_scores(request, dtype)
    sees = visible.any(-1)
    total = torch.where(visible, scores, HIDDEN).logsumexp(-1)
    sink, share = _sink(request, total, sees)
    logs = torch.where(visible, scores - (total - share).unsqueeze(-1), HIDDEN)
    kept = share.exp().unsqueeze(-1)
    logs, stuck = _changed(request, request.moving_edits, logs, visible, kept)
    p, stayed = _changed(request, request.weight_edits, torch.where(visible, logs.exp(), 0.0), visible, kept)
    return Pattern(request, p, visible, torch.where(sees, total, -torch.inf), sink, stuck + stayed)


def edited_scores(request: Request, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores after the score stages, and what is visible; hidden scores are finite and mean nothing."""
    q, k = request.q.to(dtype), _spread(request.k.to(dtype), request.group)
    scores = request.scale * torch.einsum("bhid,bhjd->bhij", q, k)
    if request.softcap is not None:
        scores = request.softcap * torch.tanh(scores / request.softcap)
    queries, keys = q.shape[2], k.shape[2]
    i, j = torch.arange(queries, device=q.device) + keys - queries, torch.arange(keys, device=q.device)
    added = request.mask.additive(i, j)
    if added is not None:
        scores = scores + added.to(dtype)
    visible = request.mask.dense(queries, keys, device=q.device).expand_as(scores)
    return _edited(request, scores[:, :, request.rows], visible[:, :, request.rows])


def _edited(request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    for edit in request.score_edits:
        new, seen = known(EDITS, edit.form, "edit")(edit, request, scores, visible)
        touched = _touched(edit, request, scores)
        scores, visible = torch.where(touched, new, scores), torch.where(touched, seen, visible)
    return scores, visible


def _changed(
    request: Request, edits: Iterable[E.Edit], x: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """ln p or p after these edits, and how many rows could not be changed."""
    unmoved = torch.zeros((), dtype=torch.long, device=x.device)
    for edit in edits:
        new, able = known(EDITS, edit.form, "edit")(edit, request, x, visible, share)
        touched = _touched(edit, request, x)
        x = torch.where(touched & able, new, x)
        unmoved = unmoved + (touched & visible & ~able).any(-1).sum()
    return x, unmoved


def _outputs(request: Request, z: Tensor) -> Tensor:
    for edit in request.output_edits:
        z = torch.where(_touched(edit, request, z), known(EDITS, edit.form, "edit")(edit, request, z), z)
    return z


def _temperature(edit: E.Temperature, request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return scores / _values(edit.value, scores), visible


def _bias_keys(edit: E.BiasKeys, request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(_keys(edit.keys, scores), scores + edit.amount, scores), visible


def _emphasize(edit: E.Emphasize, request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(_keys(edit.keys, scores), scores + edit.amount * scores.abs(), scores), visible


def _mask_keys(edit: E.MaskKeys, request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return scores, visible & ~_keys(edit.keys, scores)


def _redistribute(
    edit: E.Redistribute, request: Request, logs: Tensor, visible: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """In logarithms, so that however little weight a target has, its keys keep their proportions."""
    source, target = _keys(edit.source, logs), _keys(edit.target, logs)
    l_source = torch.where(source, logs, HIDDEN).logsumexp(-1, keepdim=True)
    l_target = torch.where(target, logs, HIDDEN).logsumexp(-1, keepdim=True)
    able = l_target > HIDDEN / 2
    given = l_source + _log(edit.fraction) + torch.where(able, logs - l_target, 0.0)
    new = torch.where(target & able & visible, torch.logaddexp(logs, given), logs)
    return torch.where(source & able, (new + _log(1 - edit.fraction)).clamp(min=HIDDEN), new), able


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _to_identity(edit: E.Blend, request: Request, p: Tensor, visible: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    own = torch.arange(visible.shape[-1], device=visible.device)[None, :] == request.positions[:, None]
    return _toward(edit, p, share, (own & visible).to(p))


def _to_uniform(edit: E.Blend, request: Request, p: Tensor, visible: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    return _toward(edit, p, share, visible.to(p) / visible.sum(-1, keepdim=True).clamp(min=1))


def _toward(edit: E.Blend, p: Tensor, share: Tensor, ideal: Tensor) -> tuple[Tensor, Tensor]:
    return (1 - edit.amount) * p + edit.amount * share * ideal, ideal.sum(-1, keepdim=True) > 0


def _gate(edit: E.Gate, request: Request, z: Tensor) -> Tensor:
    return z * _values(edit.value, z)


EDITS: dict[E.Form, Callable[..., Any]] = {
    E.Temperature: _temperature,
    E.BiasKeys: _bias_keys,
    E.Emphasize: _emphasize,
    E.MaskKeys: _mask_keys,
    E.Redistribute: _redistribute,
    (E.Blend, "identity"): _to_identity,
    (E.Blend, "uniform"): _to_uniform,
    E.Gate: _gate,
}


def _argmax(s: Stat, of: Pattern) -> Tensor:
    best = torch.where(of.visible, of.p, -1.0).argmax(-1)
    return torch.where(of.visible.any(-1), best, -1)


def _distance(s: Stat, of: Pattern) -> Tensor:
    i, j = of.made.positions, torch.arange(of.made.keys, device=of.p.device)
    if of.made.places is None:
        far = (i[:, None] - j[None, :]).abs()
    else:
        at = of.made.places.to(j.device)
        far = (at[i][:, None] - at[j][None]).square().sum(-1).sqrt()
    return (of.p * far.to(of.p)).sum(-1)


def _on_first(s: Stat, of: Pattern) -> Tensor:
    assert of.made.first is not None
    return _on_key(of, of.made.first[:, None, None])


def _on_key(of: Pattern, key: Tensor) -> Tensor:
    """The weight on one key per row, 0 where there is none; [row] or [batch, 1, 1]."""
    j = torch.arange(of.made.keys, device=of.p.device)
    return torch.where((j == key.unsqueeze(-1)).expand_as(of.p), of.p, 0.0).sum(-1)


def _topk(s: Stat, of: Pattern) -> tuple[Tensor, Tensor]:
    ranked = torch.where(of.visible, of.p, -1.0)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., : s.k]
    order = torch.nn.functional.pad(order, (0, s.k - order.shape[-1]), value=-1)
    values = ranked.gather(-1, order.clamp(min=0))
    real = (order >= 0) & (values >= 0)
    return torch.where(real, values, 0.0), torch.where(real, order, -1)


STATS: dict[str, Callable[[Stat, Pattern], Tensor]] = {
    "lse": lambda s, of: of.lse,
    "sink": lambda s, of: of.sink,
    "entropy": lambda s, of: -torch.where(of.p > 0, of.p * torch.where(of.p > 0, of.p, 1.0).log(), 0.0).sum(-1),
    "max": lambda s, of: of.p.amax(-1),
    "argmax": _argmax,
    "topk": lambda s, of: _topk(s, of)[0],
    "distance": _distance,
    "first": _on_first,
    "previous": lambda s, of: _on_key(of, of.made.positions - 1),
    "self": lambda s, of: _on_key(of, of.made.positions),
    "mass": lambda s, of: torch.where(_keys(of.made.key_sets[s.argument], of.p), of.p, 0.0).sum(-1),
    "received": lambda s, of: of.p.sum(2),
    "seen": lambda s, of: of.visible.sum(2),
    "received_mean": lambda s, of: ratio(of.p.sum(2), of.visible.sum(2)),
}
ABLE = Abilities(
    masks=ANY,
    edits=EDITS.keys(),
    stats=STATS.keys(),
    options={"softcap", "bias", "sinks", "rows", "no v", "width", "places"},
    gradients=ANY,
    dtypes=FLOATS,
    devices=ANY,
)


def _sink(request: Request, total: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves."""
    if request.sinks is None:
        return torch.zeros_like(total), torch.zeros_like(total)
    above = request.sinks.to(total)[None, :, None] - torch.where(sees, total, 0.0)
    return torch.where(sees, above.sigmoid(), 1.0), torch.where(sees, torch.nn.functional.logsigmoid(-above), 0.0)


def _touched(edit: E.Edit, request: Request, like: Tensor) -> Tensor:
    found = edit.where(torch.arange(request.heads, device=like.device), request.rows)
    return torch.ones_like(like, dtype=torch.bool) if found is None else found.expand_as(like)


def _values(value: float | Tensor, like: Tensor) -> float | Tensor:
    return E.per_head(value, torch.arange(like.shape[1], device=like.device), like)


def _keys(keys: Tensor, like: Tensor) -> Tensor:
    return E.key_set("a key set", keys).to(like.device)[:, None, None, :]


def _spread(x: Tensor, group: int) -> Tensor:
    return x.repeat_interleave(group, dim=1)
