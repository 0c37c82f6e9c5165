"""What all operators share: each is an edit of how heads attend, and the head program that it puts there.

An operator is a frozen value that compares by content. It is named with the heads it is for, `Linear("L5.H*")`, and
works wherever edits do: `m.run`, `m.edited`, `m.generate`, sweeps (by full passes) and gradients. `z(part)` is the
output, `pattern(part)` the weights behind it where there is a matrix. One that has a matrix says how a row of it comes
about (`weights`); its z is then computed for blocks of rows, so that memory is linear in length whatever the operator.

While generating, an operator that is a recurrence (it has `start`, `grow` and `answer`: linear attention, InLine, the
prefix scan) goes on from its state (`hooks/states.py`); every other one reads the keys and values of the cache and
computes the new rows from all of them. One that reads the queries of other rows (`whole`) has no such rows there and is
refused by name, as is one that counts positions (`ordered`) in cross-attention, and one that puts its own products in
the place of scores (`scoreless`) where the model adds a bias or a learned sink to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from interp.hooks.edits.edits import AtHeads, AttentionEdit, Place
from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import Recurrent
from interp.kernels.masks.symbols import Mask, as_mask

NUMBERS = 2**22
"""Numbers of a pattern that are in memory together."""


class Operator(AttentionEdit):
    """Another attention in a head's place."""

    ordered: ClassVar[bool] = False
    """Whether it counts positions, queries being the last of the keys."""
    whole: ClassVar[bool] = False
    """Whether a row depends on the queries of other rows."""
    scoreless: ClassVar[bool] = False
    """Whether what the model adds to scores has no place in it."""
    fast: ClassVar[bool] = False
    """Whether its z leaves out what it does not need, and not only hides it."""

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        if self.ordered and place.cross:
            raise EditError(
                f"{self!r} counts positions, and in cross-attention queries and keys are positions of two sequences:"
                " use it at self-attention."
            )
        if self.whole and place.cached:
            raise EditError(
                f"{self!r} reads the queries of every row, and this call continues from a cache, which has only keys"
                " and values: pass phase='prefill' to use it in the prompt only, or run whole texts"
                " (use_cache=False)."
            )
        return [(place.heads, self)]

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        """The pattern of some queries [example, head, row, key], float32 or better."""
        raise NotImplementedError

    def z(self, part: Part) -> Tensor:
        """[example, head, query, d], a block of rows after the other."""
        return torch.cat([part.read(self.weights(part, rows)) for rows in blocks(part)], 2)

    def pattern(self, part: Part) -> Tensor | None:
        """[example, head, query, key] of every query, or of the rows asked for."""
        return self.weights(part, rows_asked(part))

    def refuse_additions(self, part: Part) -> None:
        """Raise where the model adds to the scores what this operator would lose."""
        added = {
            "a position bias": part.bias is not None,
            "a learned sink": part.sinks is not None,
            "a bias in its mask": _biased(part),
        }
        found = [name for name, there in added.items() if there]
        if found:
            raise EditError(
                f"{self!r} has no softmax of scores, and the model adds {found[0]} to the scores of these heads, which"
                " would be lost: use an operator of scores (StaticQK, Masked), or another layer."
            )

    def places(self, part: Part) -> Tensor:
        """[query], the positions of the queries among the keys; refused where there are more queries than keys."""
        if part.q.shape[2] > part.k.shape[2]:
            raise EditError(
                f"{self!r} counts positions, and {part.q.shape[2]} queries are not the last of {part.k.shape[2]} keys:"
                " use it at self-attention."
            )
        return places(part)

    def products(self, part: Part) -> float:
        """Multiplications that this operator's attention takes in such a call, a head and example; those of softmax
        attention over all the keys that rows see, unless an operator counts for itself."""
        return softmax_products(part)

    def saving(self, part: Part) -> float:
        """The multiplications of softmax attention over those of this operator."""
        return softmax_products(part) / self.products(part)

    def numbers(self, part: Part) -> float:
        """Numbers that the next token would read, a head and example: the state of one that has a state, else the keys
        and values that the last row sees, unless an operator counts for itself."""
        if not isinstance(self, Recurrent):
            return softmax_numbers(part)
        one = replace(part, q=part.q[:, :, :1], k=part.k[:, :, :1], v=part.v[:, :, :1], mask=None, bias=None, rows=None)
        state = self.start(one)
        kept = state if isinstance(state, tuple) else tuple(vars(state).values())
        return float(sum(x[0, 0].numel() for x in kept if torch.is_tensor(x)))

    def same_keys(self, part: Part) -> Tensor:
        """Bool [1 or example, 1 or head, key] that every row sees, rows of padding apart; refused where they differ."""
        known, runs = alive(part), runs_of(part)
        for rows in blocks(part) if runs is None else ():
            seen = visible(part, rows)
            if not bool((seen == known[:, :, None]).logical_or(~seen.any(-1, keepdim=True)).all()):
                self._refuse_uneven(part)
        if runs is not None and not all(bool((one == one[:, :1]).all()) for one in runs):
            self._refuse_uneven(part)
        return known

    def _refuse_uneven(self, part: Part) -> None:
        raise EditError(
            f"{self!r}: rows of heads {list(part.heads)} see different keys, as in a causal tower or in windows, and"
            " this operator reads the same keys for all rows: use it where every row sees all keys."
        )


def softmax_products(part: Part) -> float:
    """Multiplications of softmax attention, a head and example: scores and means over the keys that rows see."""
    return float(pairs(part)) * (part.q.shape[-1] + part.v.shape[-1])


def softmax_numbers(part: Part) -> float:
    """Numbers that softmax attention reads for one more token: the keys and values that the last row sees."""
    last = torch.arange(part.q.shape[2], device=part.q.device)[-1:]
    return float(visible(part, last).float().sum(-1).mean()) * (part.q.shape[-1] + part.v.shape[-1])


def pairs(part: Part) -> float:
    """How many keys all rows see together, the mean over heads and examples."""
    shown = torch.stack([visible(part, rows).float().sum((2, 3)).mean() for rows in blocks(part)])
    return float(shown.sum())


def wide(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def places(part: Part) -> Tensor:
    """[query], the positions of the queries among the keys."""
    queries, keys = part.q.shape[2], part.k.shape[2]
    return torch.arange(queries, device=part.q.device) + keys - queries


def rows_asked(part: Part) -> Tensor:
    """The numbers of the queries whose pattern is asked for."""
    return torch.arange(part.q.shape[2], device=part.q.device) if part.rows is None else part.rows


def blocks(part: Part, width: int | None = None) -> Iterator[Tensor]:
    """The queries in blocks whose patterns, or `width` numbers a row, fit."""
    batch, heads, queries, _ = part.q.shape
    step = max(1, NUMBERS // max(1, batch * heads * (width or part.k.shape[2])))
    yield from torch.arange(queries, device=part.q.device).split(step)


def visible(part: Part, rows: Tensor) -> Tensor:
    """Bool [1 or example, 1 or head, row, key]: what some queries see."""
    keys = torch.arange(part.k.shape[2], device=part.q.device)
    return as_mask(part.mask).visible(rows + part.k.shape[2] - part.q.shape[2], keys)


def alive(part: Part) -> Tensor:
    """Bool [1 or example, 1 or head, key]: keys that some query sees; padding is seen by none."""
    runs = runs_of(part)
    if runs is None:
        return torch.stack([visible(part, rows).any(2) for rows in blocks(part)]).any(0)
    low, high = runs
    keys = part.k.shape[2]
    ends = torch.zeros(low.shape[0], keys + 1, dtype=torch.long, device=low.device)
    some = (high > low).long()
    ends = ends.scatter_add(1, low.expand_as(some), some).scatter_add(1, high.expand_as(some), -some)
    return (ends.cumsum(1)[:, :keys] > 0)[:, None]


def looks_ahead(part: Part) -> bool:
    """Whether some query sees a later key than its own."""
    keys, at, runs = torch.arange(part.k.shape[2], device=part.q.device), places(part), runs_of(part)
    if runs is not None:
        return bool(((runs[1] > at + 1) & (runs[1] > runs[0])).any())
    return any(bool((visible(part, rows) & (keys > at[rows][:, None])).any()) for rows in blocks(part))


def runs_of(part: Part) -> tuple[Tensor, Tensor] | None:
    """The keys [low, high) of each query [1 or example, query], where they are one run and a mask says so in symbols;
    in time linear in length."""
    found = as_mask(part.mask).interval(places(part), part.k.shape[2])
    if found is None:
        return None
    low, high = torch.broadcast_tensors(*found)
    return low, torch.maximum(low, high)


def real_queries(part: Part) -> Tensor:
    """Bool [1 or example, 1 or head, query]: those whose own key is seen by somebody; all, where keys are of another
    tower or no query is hidden."""
    if part.q.shape[2] > part.k.shape[2]:
        return torch.ones(1, 1, part.q.shape[2], dtype=torch.bool, device=part.q.device)
    return alive(part)[:, :, part.k.shape[2] - part.q.shape[2] :]


def shares(numbers: Tensor, seen: Tensor) -> Tensor:
    """Numbers [..., key] divided by their sum over the visible keys; rows that see nothing, or whose sum is 0, are 0.

    The sum of signed numbers may come near 0, and weights are then as large as that makes them.
    """
    numbers = numbers.masked_fill(~seen, 0.0)
    return ratio(numbers, numbers.sum(-1, keepdim=True))


def ratio(upper: Tensor, lower: Tensor) -> Tensor:
    """The quotient, 0 where the lower one is 0; its gradient is then 0 as well."""
    none = lower == 0
    return (upper / lower.masked_fill(none, 1.0)).masked_fill(none, 0.0)


def softmax(s: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the visible keys; rows that see nothing are 0."""
    s = s.masked_fill(~seen, -torch.inf)
    blind = ~seen.any(-1, keepdim=True)
    return torch.softmax(s.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def per_head(given: Tensor, part: Part, what: str) -> Tensor:
    """A tensor [head, ...] for the heads of a part: one for all of them, or one each."""
    found = given.to(part.q.device)
    if found.shape[0] not in (1, len(part.heads)):
        raise EditError(
            f"{what} has {found.shape[0]} heads, and {len(part.heads)} attend by it here: give one for all of them, or"
            " one each, a layer at a time."
        )
    return found.expand(len(part.heads), *found.shape[1:])


def _biased(part: Part) -> bool:
    mask: Mask = as_mask(part.mask)
    keys, at = torch.arange(part.k.shape[2], device=part.q.device), places(part)
    for rows in blocks(part):
        added = mask.additive(at[rows], keys)
        if added is None:
            return False
        if bool((added != 0).any()):
            return True
    return False
