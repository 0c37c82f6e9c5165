"""Edits of a block of scores and of its weights before they are normalised, in place.

Weights e = exp(s - max) are not yet divided by their sum l. Every edit of weights leaves l as it is: a redistribution
moves e from one set to another, and a blend of p with `total x ideal` is one of e with `l x ideal`, since the factor
that normalises is total / l.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.edits import Edit
from interp.kernels.request import Request

HIDDEN = -1e30


@dataclass(frozen=True, eq=False)
class Block:
    """Example b, query heads [h], places `at` of the rows, keys from `low` on: what [h, rows, keys] of scores stand
    for.
    """

    made: Request
    b: int
    heads: slice
    at: slice
    low: int

    def touched(self, edit: Edit) -> Tensor | None:
        """Bool [1 or h, 1 or rows, 1], None for all of it."""
        heads = torch.arange(self.made.heads, device=self.made.q.device)[self.heads]
        found = edit.where(heads, self.made.rows[self.at])
        return None if found is None else found[self.b if len(found) > 1 else 0]

    def keys(self, keys: Tensor, like: Tensor) -> Tensor:
        """Bool [keys of the block]."""
        found = E.key_set("a key set", keys).to(like.device)
        return found[self.b if len(found) > 1 else 0, self.low : self.low + like.shape[-1]]


def moves(made: Request) -> bool:
    """Whether any edit moves weights after the softmax."""
    return any(isinstance(e, E.Redistribute | E.Blend) for e in made.edits)


def edit_scores(block: Block, s: Tensor, hidden: float) -> None:
    """Temperature, key bias, emphasis and key masks of visible scores s [h, rows, keys]; hidden ones stay hidden."""
    for edit in block.made.edits:
        if edit.stage >= E.Redistribute.stage:
            continue
        touched = block.touched(edit)
        if touched is not None and not bool(touched.any()):
            continue
        if isinstance(edit, E.Temperature):
            _divide(block, edit, touched, s, hidden)
            continue
        keys = block.keys(edit.sets()[0], s)
        where = keys if touched is None else keys & touched
        if isinstance(edit, E.MaskKeys):
            s.masked_fill_(where, hidden)
        elif isinstance(edit, E.BiasKeys):
            s.add_(where, alpha=edit.amount)
        elif isinstance(edit, E.Emphasize):
            unseen = s <= hidden / 2
            s.addcmul_(s.abs(), where.to(s.dtype), value=edit.amount).masked_fill_(unseen, hidden)


def _divide(block: Block, edit: E.Temperature, touched: Tensor | None, s: Tensor, hidden: float) -> None:
    heads = torch.arange(block.made.heads, device=s.device)[block.heads]
    value = E.per_head(edit.value, heads, s)
    by = torch.as_tensor(value, dtype=s.dtype, device=s.device).reshape(-1, 1, 1)
    unseen = s <= hidden / 2
    s.div_(by if touched is None else torch.where(touched, by, 1.0)).masked_fill_(unseen, hidden)


def edit_weights(block: Block, t: Tensor, e: Tensor, visible: Tensor, total: Tensor) -> int:
    """Redistributions and blends of e = exp(t) [h, rows, keys], whose rows sum to `total` [h, rows, 1]; returns how
    many rows of heads that see something could not be moved. Redistributions change t as well.
    """
    unmoved, sees = 0, visible.any(-1, keepdim=True)
    for edit in block.made.edits:
        if not isinstance(edit, E.Redistribute | E.Blend):
            continue
        touched = block.touched(edit)
        asked = sees if touched is None else sees & touched
        if isinstance(edit, E.Redistribute):
            able = _redistribute(block, edit, t, e, asked)
        elif edit.to == "identity":
            able = _to_own(block, edit, e, visible, total, asked)
        else:
            able = _to_all(edit, e, visible, total, asked)
        unmoved += int((asked & ~able).sum())
    return unmoved


def _redistribute(block: Block, edit: E.Redistribute, t: Tensor, e: Tensor, asked: Tensor) -> Tensor:
    """In logarithms: whatever little weight the target has, its keys keep their proportions."""
    source, target = (block.keys(x, e) for x in edit.sets())
    from_, to = (t.masked_fill(~x, HIDDEN).logsumexp(-1, keepdim=True) for x in (source, target))
    able = to > HIDDEN / 2
    now = asked & able
    more = torch.where(now, from_ + _log(edit.fraction) - to, HIDDEN)
    t.add_(torch.where(target, torch.logaddexp(torch.zeros_like(more), more), 0.0))
    t.add_((source & now).to(t.dtype), alpha=_log(1 - edit.fraction))
    e.copy_(t).exp_()
    return able


def _log(x: float) -> float:
    return math.log(x) if x > 0 else HIDDEN


def _to_own(block: Block, edit: E.Blend, e: Tensor, visible: Tensor, total: Tensor, asked: Tensor) -> Tensor:
    at = block.made.positions[block.at] - block.low
    inside = (at >= 0) & (at < e.shape[-1])
    column = at.clamp(0, e.shape[-1] - 1).reshape(1, -1, 1).expand(len(e), -1, 1)
    able = visible.gather(-1, column) & inside.reshape(1, -1, 1)
    by = edit.amount * (asked & able).to(e.dtype)
    e.mul_(1 - by).scatter_add_(-1, column, by * total)
    return able


def _to_all(edit: E.Blend, e: Tensor, visible: Tensor, total: Tensor, asked: Tensor) -> Tensor:
    by = edit.amount * asked.to(e.dtype)
    e.mul_(1 - by).addcmul_(visible.to(e.dtype), by * total / visible.sum(-1, keepdim=True).clamp(min=1))
    return asked
