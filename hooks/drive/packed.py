"""Attention for many rows of a sweep at once, each row a suffix of one of the base prompts.

Tokens of all rows are one after the other, [1, token, d], so that every projection is one large product. Rows that have
the same columns form a rectangle. Keys and values before its first column are the base prompt's, shared by all of its
rows and never copied per row: scores against them are one product per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.drive.versions import RowBatch

WEIGHTS = 2**25
"""Scores held at a time."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What one layer's attention saw on the base prompts, and what its call was like."""

    k: Tensor
    v: Tensor
    bias: Tensor | None
    """Added to the scores, -inf where the query does not see the key: [1 or prompt, 1 or head, query, key]."""
    scale: float
    softcap: float | None
    sinks: Tensor | None


def attend(
    q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], rectangles: Sequence[RowBatch], shared: Shared
) -> Tensor:
    """z [1, token, head, d] for q [1, head, token, d]; k and v are each rectangle's own [row, kv head, column, d]."""
    out = q.new_empty(1, q.shape[2], q.shape[1], v[0].shape[-1])
    for r, own_k, own_v in zip(rectangles, k, v, strict=True):
        part = q[0, :, r.at : r.at + r.tokens].unflatten(1, (len(r), -1)).transpose(0, 1)
        out[0, r.at : r.at + r.tokens] = _rectangle(part, own_k, own_v, r, shared).transpose(1, 2).flatten(0, 1)
    return out


def _rectangle(q: Tensor, k: Tensor, v: Tensor, r: RowBatch, shared: Shared) -> Tensor:
    """[row, head, query, d]"""
    beat = _beat(r.prompts)
    if beat is not None:
        return _alike(q, k, v, r.prompts[:beat], r, shared)
    by_prompt = torch.argsort(r.prompts, stable=True)
    prompts, counts = torch.unique_consecutive(r.prompts[by_prompt], return_counts=True)
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    for n, rows in enumerate(by_prompt.split(counts.tolist())):
        out[rows] = _alike(q[rows], k[rows], v[rows], prompts[n : n + 1], r, shared)
    return out


def _beat(prompts: Tensor) -> int | None:
    """After how many rows the prompts come again in the same order, if they do so throughout."""
    again = (prompts == prompts[0]).nonzero()
    beat = int(again[1]) if len(again) > 1 else len(prompts)
    if len(prompts) % beat or not torch.equal(prompts, prompts[:beat].repeat(len(prompts) // beat)):
        return None
    return beat


def _alike(q: Tensor, k: Tensor, v: Tensor, prompts: Tensor, r: RowBatch, shared: Shared) -> Tensor:
    """As many rows for each of these prompts, which come in turn."""
    rows, heads, queries = q.shape[:3]
    each, kv_heads = rows // len(prompts), k.shape[1]
    step = max(1, WEIGHTS // max(1, len(prompts) * heads * queries * r.end))
    if each > step:
        parts = (x.split(step * len(prompts)) for x in (q, k, v))
        return torch.cat([_alike(a, b, c, prompts, r, shared) for a, b, c in zip(*parts, strict=True)])
    grouped = q.unflatten(1, (kv_heads, -1))
    own = grouped.flatten(2, 3) @ k.transpose(-1, -2)
    scores = own.unflatten(2, (-1, queries)).flatten(1, 2)
    if r.start:
        scores = torch.cat([_against(grouped, shared.k[prompts, :, : r.start].transpose(-1, -2)), scores], -1)
    weights = _softmax(scores * shared.scale, prompts, each, r, shared).unflatten(1, (kv_heads, -1))
    seen = weights[..., r.start :].flatten(2, 3)
    if not r.start:
        return (seen @ v).unflatten(2, (-1, queries)).flatten(1, 2)
    before = _against(weights[..., : r.start], shared.v[prompts, :, : r.start])
    z = torch.baddbmm(before.reshape(rows * kv_heads, -1, v.shape[-1]), seen.flatten(0, 1), v.flatten(0, 1))
    return z.view_as(before)


def _against(x: Tensor, base: Tensor) -> Tensor:
    """x [row, kv head, group, query, n] times base [prompt, kv head, n, m], where rows take the prompts in turn; one
    product per prompt and kv head: [row, head, query, m]."""
    by_prompt = x.unflatten(0, (-1, len(base))).movedim(0, 2)
    made = by_prompt.flatten(2, 4) @ base
    return made.unflatten(2, by_prompt.shape[2:5]).movedim(2, 0).flatten(0, 1).flatten(1, 2)


def _softmax(scores: Tensor, prompts: Tensor, each: int, r: RowBatch, shared: Shared) -> Tensor:
    if shared.softcap is not None:
        scores = shared.softcap * torch.tanh(scores / shared.softcap)
    if shared.bias is not None:
        bias = shared.bias[:, :, r.columns, : r.end]
        bias = bias if bias.shape[0] == 1 else bias[prompts].repeat(each, 1, 1, 1)
        scores = scores + bias
    whole = torch.promote_types(scores.dtype, torch.float32)
    if shared.sinks is None:
        return scores.to(whole).softmax(-1).nan_to_num(0.0).to(scores.dtype)
    sink = shared.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
    return torch.cat([scores, sink], -1).to(whole).softmax(-1)[..., :-1].to(scores.dtype)
