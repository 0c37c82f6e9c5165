"""Edits of a block of scores and of its weights before they are normalised, in place.

Weights e = exp(s - max) are not yet divided by their sum l. Every edit of weights leaves l as it is: a redistribution
moves e from one set to another, and a blend of p with `total x ideal` is one of e with `l x ideal`, since the factor
that normalises is total / l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.edits import Edit
from interp.kernels.errors import known
from interp.kernels.request import Request

HIDDEN = -1e30


@dataclass(frozen=True, eq=False)
class ScoreBlock:
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

    def where(self, keys: Tensor, touched: Tensor | None, like: Tensor) -> Tensor:
        """Bool, broadcasting to the block: these keys, in what is touched."""
        found = self.keys(keys, like)
        return found if touched is None else found & touched


def moves(made: Request) -> bool:
    """Whether any edit moves weights after the softmax."""
    return bool(made.moving_edits + made.weight_edits)


def edit_scores(block: ScoreBlock, s: Tensor) -> None:
    """Temperature, key bias, emphasis and key masks of visible scores s [h, rows, keys]; hidden ones stay hidden."""
    for edit in block.made.score_edits:
        change, touched = known(OF_SCORES, edit.form, "edit"), block.touched(edit)
        if touched is None or bool(touched.any()):
            change(block, edit, touched, s)


def _divide(block: ScoreBlock, edit: E.Temperature, touched: Tensor | None, s: Tensor) -> None:
    heads = torch.arange(block.made.heads, device=s.device)[block.heads]
    value = E.per_head(edit.value, heads, s)
    by = torch.as_tensor(value, dtype=s.dtype, device=s.device).reshape(-1, 1, 1)
    unseen = s <= HIDDEN / 2
    s.div_(by if touched is None else torch.where(touched, by, 1.0)).masked_fill_(unseen, HIDDEN)


def _bias(block: ScoreBlock, edit: E.BiasKeys, touched: Tensor | None, s: Tensor) -> None:
    s.add_(block.where(edit.keys, touched, s), alpha=edit.amount)


def _emphasize(block: ScoreBlock, edit: E.Emphasize, touched: Tensor | None, s: Tensor) -> None:
    unseen, where = s <= HIDDEN / 2, block.where(edit.keys, touched, s)
    s.addcmul_(s.abs(), where.to(s.dtype), value=edit.amount).masked_fill_(unseen, HIDDEN)


def _hide(block: ScoreBlock, edit: E.MaskKeys, touched: Tensor | None, s: Tensor) -> None:
    s.masked_fill_(block.where(edit.keys, touched, s), HIDDEN)


OF_SCORES: dict[E.Form, Callable[..., None]] = {
    E.Temperature: _divide, E.BiasKeys: _bias, E.Emphasize: _emphasize, E.MaskKeys: _hide,
}  # fmt: skip


def edit_weights(block: ScoreBlock, t: Tensor, e: Tensor, visible: Tensor, total: Tensor) -> int:
    """Redistributions and blends of e = exp(t) [h, rows, keys], whose rows sum to `total` [h, rows, 1]; returns how
    many rows of heads that see something could not be moved. Redistributions change t as well.
    """
    unmoved, sees = 0, visible.any(-1, keepdim=True)
    for edit in block.made.moving_edits + block.made.weight_edits:
        change, touched = known(OF_WEIGHTS, edit.form, "edit"), block.touched(edit)
        asked = sees if touched is None else sees & touched
        able = change(block, edit, t, e, visible, total, asked)
        unmoved += int((asked & ~able).sum())
    return unmoved


def _redistribute(
    block: ScoreBlock, edit: E.Redistribute, t: Tensor, e: Tensor, visible: Tensor, total: Tensor, asked: Tensor
) -> Tensor:
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


def _to_own(
    block: ScoreBlock, edit: E.Blend, t: Tensor, e: Tensor, visible: Tensor, total: Tensor, asked: Tensor
) -> Tensor:
    at = block.made.positions[block.at] - block.low
    inside = (at >= 0) & (at < e.shape[-1])
    column = at.clamp(0, e.shape[-1] - 1).reshape(1, -1, 1).expand(len(e), -1, 1)
    able = visible.gather(-1, column) & inside.reshape(1, -1, 1)
    by = edit.amount * (asked & able).to(e.dtype)
    e.mul_(1 - by).scatter_add_(-1, column, by * total)
    return able


def _to_all(
    block: ScoreBlock, edit: E.Blend, t: Tensor, e: Tensor, visible: Tensor, total: Tensor, asked: Tensor
) -> Tensor:
    by = edit.amount * asked.to(e.dtype)
    e.mul_(1 - by).addcmul_(visible.to(e.dtype), by * total / visible.sum(-1, keepdim=True).clamp(min=1))
    return asked


OF_WEIGHTS: dict[E.Form, Callable[..., Tensor]] = {
    E.Redistribute: _redistribute, (E.Blend, "identity"): _to_own, (E.Blend, "uniform"): _to_all,
}  # fmt: skip
EDITS = frozenset({*OF_SCORES, *OF_WEIGHTS, E.Gate})
