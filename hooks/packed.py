"""Attention for many rows of a sweep at once, each row a suffix of one of the base prompts.

Tokens of all rows lie one after the other, [1, token, d], so that every projection is one large product. Rows that
start at the same column form a rectangle. Keys and values before that column are the base prompt's, shared by all of
its rows and never copied per row: scores against them are one product per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Rows of one slice with the same columns: tokens `at .. at + rows * width` of the slice, row by row."""

    at: int
    start: int
    end: int
    prompts: Tensor
    queries: Tensor | None = None
    """Columns of the queries where only some are wanted; the tokens are then those of the queries."""

    @property
    def rows(self) -> int:
        return len(self.prompts)

    @property
    def columns(self) -> Tensor:
        """The columns of the queries."""
        return torch.arange(self.start, self.end) if self.queries is None else self.queries

    @property
    def tokens(self) -> int:
        return self.rows * len(self.columns)


def attend(
    q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], rectangles: Sequence[Rectangle], shared: Shared
) -> Tensor:
    """z [1, token, head, d] for q [1, head, token, d]; k and v are each rectangle's own [row, kv head, column, d]."""
    out = q.new_empty(1, q.shape[2], q.shape[1], v[0].shape[-1])
    for r, own_k, own_v in zip(rectangles, k, v, strict=True):
        part = q[0, :, r.at : r.at + r.tokens].unflatten(1, (r.rows, -1)).transpose(0, 1)
        out[0, r.at : r.at + r.tokens] = _rectangle(part, own_k, own_v, r, shared).transpose(1, 2).flatten(0, 1)
    return out


def _rectangle(q: Tensor, k: Tensor, v: Tensor, r: Rectangle, shared: Shared) -> Tensor:
    """[row, head, query, d]"""
    by_prompt = torch.argsort(r.prompts, stable=True)
    prompts, counts = torch.unique_consecutive(r.prompts[by_prompt], return_counts=True)
    if len(set(counts.tolist())) == 1:
        whole = _alike(q[by_prompt], k[by_prompt], v[by_prompt], prompts, r, shared)
        return torch.empty_like(whole).index_copy_(0, by_prompt, whole)
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    for prompt, rows in zip(prompts.tolist(), by_prompt.split(counts.tolist()), strict=True):
        out[rows] = _alike(q[rows], k[rows], v[rows], torch.tensor([prompt]), r, shared)
    return out


def _alike(q: Tensor, k: Tensor, v: Tensor, prompts: Tensor, r: Rectangle, shared: Shared) -> Tensor:
    """As many rows for each of these prompts, prompt by prompt."""
    rows, heads, queries = q.shape[:3]
    each, kv_heads = rows // len(prompts), k.shape[1]
    step = max(1, WEIGHTS // max(1, len(prompts) * heads * queries * r.end))
    if each > step:
        pick = torch.arange(rows).view(len(prompts), each).split(step, dim=1)
        out = q.new_empty(rows, heads, queries, v.shape[-1])
        for some in pick:
            index = some.flatten()
            out[index] = _alike(q[index], k[index], v[index], prompts, r, shared)
        return out
    grouped = q.unflatten(1, (kv_heads, -1))
    before = _against(grouped, shared.k[prompts, :, : r.start].transpose(-1, -2), each)
    own = grouped.flatten(2, 3) @ k.transpose(-1, -2)
    scores = torch.cat([before, own.unflatten(2, (-1, queries)).flatten(1, 2)], -1) * shared.scale
    weights = _softmax(scores, prompts, each, r, shared).unflatten(1, (kv_heads, -1))
    z = weights[..., r.start :].flatten(2, 3) @ v
    return _against(weights[..., : r.start], shared.v[prompts, :, : r.start], each) + z.unflatten(
        2, (-1, queries)
    ).flatten(1, 2)


def _against(x: Tensor, base: Tensor, each: int) -> Tensor:
    """x [row, kv head, group, query, n] times base [prompt, kv head, n, m], one product per prompt and kv head: [row,
    head, query, m]."""
    prompts = len(base)
    by_prompt = x.unflatten(0, (prompts, each)).transpose(1, 2)
    made = by_prompt.flatten(2, 4) @ base
    shape = (prompts, x.shape[1], each, x.shape[2], x.shape[3], base.shape[-1])
    return made.view(shape).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _softmax(scores: Tensor, prompts: Tensor, each: int, r: Rectangle, shared: Shared) -> Tensor:
    if shared.softcap is not None:
        scores = shared.softcap * torch.tanh(scores / shared.softcap)
    if shared.bias is not None:
        bias = shared.bias[:, :, r.columns, : r.end]
        bias = bias if bias.shape[0] == 1 else bias[prompts].repeat_interleave(each, 0)
        scores = scores + bias
    whole = torch.promote_types(scores.dtype, torch.float32)
    if shared.sinks is None:
        return scores.to(whole).softmax(-1).nan_to_num(0.0).to(scores.dtype)
    sink = shared.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
    return torch.cat([scores, sink], -1).to(whole).softmax(-1)[..., :-1].to(scores.dtype)
