"""Attention by its definition: dense, in fp64 or fp32. It defines what the other implementations must give.

Cost: tensors of batch x head x row x key, several of them. For tests, and for patterns of small inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.request import Request
from interp.kernels.stats import Stat, ratio

HIDDEN = -1e30


def attend(
    request: Request, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor | None, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """z, log-sum-exp, statistics and counts, all in `dtype` (z too)."""
    weights, visible, lse, sink, unmoved = _weights(request, dtype)
    counts = {"blind": (~visible.any(-1)).sum(), "unmoved": unmoved}
    z = None if request.v is None else _gated(request, weights @ _spread(request.v.to(dtype), request.group))
    found = {s.name: _statistic(s, request, weights, visible, lse, sink) for s in request.stats}
    for s in request.stats:
        if s.kind == "topk":
            found[s.name + ".keys"] = _topk(s, weights, visible)[1]
    return z, lse, found, counts


def pattern(request: Request, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The final weights [batch, head, row, key]."""
    return _weights(request, dtype)[0]


def _weights(request: Request, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scores, visible = edited_scores(request, dtype)
    sees = visible.any(-1)
    total = torch.where(visible, scores, HIDDEN).logsumexp(-1)
    sink, share = _sink(request, total, sees)
    logs = torch.where(visible, scores - (total - share).unsqueeze(-1), HIDDEN)
    logs, stuck = _redistributed(request, logs, visible)
    weights, stayed = _blended(request, torch.where(visible, logs.exp(), 0.0), visible, share.exp().unsqueeze(-1))
    return weights, visible, torch.where(sees, total, -torch.inf), sink, stuck + stayed


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
    scores, visible = scores[:, :, request.rows], visible[:, :, request.rows]
    return _score_stages(request, scores, visible)


def _score_stages(request: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    for edit in request.edits:
        touched = _touched(edit, request, scores)
        if isinstance(edit, E.Temperature):
            scores = torch.where(touched, scores / _values(edit.value, scores), scores)
        elif isinstance(edit, E.BiasKeys):
            scores = torch.where(touched & _keys(edit.keys, scores), scores + edit.amount, scores)
        elif isinstance(edit, E.Emphasize):
            scores = torch.where(touched & _keys(edit.keys, scores), scores + edit.amount * scores.abs(), scores)
        elif isinstance(edit, E.MaskKeys):
            visible = visible & ~(touched & _keys(edit.keys, scores))
    return scores, visible


def _redistributed(request: Request, logs: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the weights, so that however little weight a target has, its keys keep their proportions."""
    unmoved = torch.zeros((), dtype=torch.long, device=logs.device)
    for edit in request.edits:
        if not isinstance(edit, E.Redistribute):
            continue
        source, target, touched = _keys(edit.source, logs), _keys(edit.target, logs), _touched(edit, request, logs)
        l_source = torch.where(source, logs, HIDDEN).logsumexp(-1, keepdim=True)
        l_target = torch.where(target, logs, HIDDEN).logsumexp(-1, keepdim=True)
        able = l_target > HIDDEN / 2
        given = l_source + _log(edit.fraction) + torch.where(able, logs - l_target, 0.0)
        new = torch.where(target & able & visible, torch.logaddexp(logs, given), logs)
        new = torch.where(source & able, (new + _log(1 - edit.fraction)).clamp(min=HIDDEN), new)
        logs = torch.where(touched, new, logs)
        unmoved = unmoved + (touched & visible & ~able).any(-1).sum()
    return logs, unmoved


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _blended(request: Request, p: Tensor, visible: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    unmoved = torch.zeros((), dtype=torch.long, device=p.device)
    for edit in request.edits:
        if isinstance(edit, E.Blend):
            touched, ideal = _touched(edit, request, p), _ideal(edit, request, visible).to(p)
            able = ideal.sum(-1, keepdim=True) > 0
            unmoved = unmoved + (touched & visible & ~able).any(-1).sum()
            p = torch.where(touched & able, (1 - edit.amount) * p + edit.amount * total * ideal, p)
    return p, unmoved


def _ideal(edit: E.Blend, request: Request, visible: Tensor) -> Tensor:
    if edit.to == "uniform":
        return visible.double() / visible.sum(-1, keepdim=True).clamp(min=1)
    return (torch.arange(visible.shape[-1], device=visible.device)[None, :] == request.positions[:, None]) & visible


def _gated(request: Request, z: Tensor) -> Tensor:
    for edit in request.edits:
        if isinstance(edit, E.Gate):
            z = torch.where(_touched(edit, request, z), z * _values(edit.value, z), z)
    return z


def _statistic(s: Stat, request: Request, p: Tensor, visible: Tensor, lse: Tensor, sink: Tensor) -> Tensor:
    i, j = request.positions, torch.arange(p.shape[-1], device=p.device)
    if s.kind == "lse":
        return lse
    if s.kind == "sink":
        return sink
    if s.kind == "entropy":
        return -torch.where(p > 0, p * torch.where(p > 0, p, 1.0).log(), 0.0).sum(-1)
    if s.kind == "max":
        return p.amax(-1)
    if s.kind == "argmax":
        best = torch.where(visible, p, -1.0).argmax(-1)
        return torch.where(visible.any(-1), best, -1)
    if s.kind == "topk":
        return _topk(s, p, visible)[0]
    if s.kind == "distance":
        return (p * _distances(request, i, j).to(p)).sum(-1)
    if s.kind == "mass":
        return torch.where(_keys(request.key_sets[s.argument], p), p, 0.0).sum(-1)
    if s.kind in ("first", "previous", "self"):
        return torch.where(_chosen(s.kind, request, i, j), p, 0.0).sum(-1)
    if s.kind == "received":
        return p.sum(2)
    return visible.sum(2) if s.kind == "seen" else ratio(p.sum(2), visible.sum(2))


def _chosen(kind: str, request: Request, i: Tensor, j: Tensor) -> Tensor:
    if kind == "first" and request.first is not None:
        return (j[None, :] == request.first[:, None])[:, None, None, :]
    return j[None, :] == (i - (1 if kind == "previous" else 0))[:, None]


def _topk(s: Stat, p: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    ranked = torch.where(visible, p, -1.0)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., : s.k]
    order = torch.nn.functional.pad(order, (0, s.k - order.shape[-1]), value=-1)
    values = ranked.gather(-1, order.clamp(min=0))
    real = (order >= 0) & (values >= 0)
    return torch.where(real, values, 0.0), torch.where(real, order, -1)


def _distances(request: Request, i: Tensor, j: Tensor) -> Tensor:
    if request.places is None:
        return (i[:, None] - j[None, :]).abs()
    at = request.places.to(j.device)
    return (at[i][:, None] - at[j][None]).square().sum(-1).sqrt()


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
