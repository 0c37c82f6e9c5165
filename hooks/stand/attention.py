"""One attention call sent through those who watch it: who attends, by which programs, and what is read of it.

Everything is computed outside of the user's own implementation, from what the call received, so it is the same under
every one of them. Heads that nobody changes keep the model's own z, bit for bit. A call goes through its taps outermost
first; those that attend stand around each other like the layers of an onion, with the model's own implementation and
the heads' programs in the middle. A tap that does not pass the call on attends alone: what else would have attended is
then refused, never dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call, Tap, received
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import Standing, pattern_of_program, refuse_two, z_of
from interp.hooks.stand.softmax import Changed, Changes, of_example, onto, program
from interp.kernels import edits as kernel


def through(call: Call, taps: Sequence[Tap]) -> tuple[Tensor, Tensor | None]:
    """Send one call through its taps, outermost first, and attend once between them."""
    for tap in taps:
        tap.before(call)
    return onward(call, taps)


def onward(call: Call, taps: Sequence[Tap]) -> tuple[Tensor, Tensor | None]:
    """The same from where q, k and v are what they will be."""
    call.programs = [standing for tap in taps for standing in tap.programs(call)]
    for n, one in enumerate(call.programs):
        for other in call.programs[n + 1 :]:
            if not (isinstance(one.program, Changed) and isinstance(other.program, Changed)):
                refuse_two(one, other)
    _attended(call, taps)
    for tap in taps:
        tap.after(call)
    for tap in taps:
        tap.record(call)
    return call.z, call.weights


def _attended(call: Call, taps: Sequence[Tap]) -> None:
    """Attend through every tap that has a part in it."""
    layers = [tap for tap in taps if tap.attends()]
    reached = 0

    def inner(n: int) -> None:
        nonlocal reached
        reached = max(reached, n)
        if n == len(layers):
            attend(call)
        else:
            layers[n].attend(call, functools.partial(inner, n + 1))

    inner(0)
    if reached < len(layers):
        left = [str(tap) for tap in layers[reached + 1 :]] + [s.what for s in call.programs if not call.heeded]
        if left:
            raise EditError(
                f"{layers[reached]} replaces all other attention, so {left[0]} would have no effect: use one of them"
                " at a time."
            )


def attend(call: Call) -> None:
    """Run the user's implementation where it has any say, compute the heads with programs, put them in their places."""
    changes, others = changed(call), _others(call)
    touched = tuple(sorted({head for s in call.programs if isinstance(s.program, Changed) for head in s.heads}))
    rows = _rows_of([s for s in call.programs if isinstance(s.program, Changed)])
    made = [(heads, rows, one.z(received(call, heads))) for heads, one in changes.programs(touched)]
    made += [(s.heads, s.where, z_of(s, received(call, s.heads, s.where))) for s in others]
    if made and _nothing_left(call, made):
        call.z = _joined(made).transpose(1, 2).to(call.v.dtype)
    else:
        call.attend()
        for heads, where, z in made:
            _put(call, heads, where, z)
    call.heed()


Made = tuple[tuple[int, ...], Tensor | None, Tensor]
"""Heads, the rows they are of, and their z [b, head, row, d]."""


def _nothing_left(call: Call, made: Sequence[Made]) -> bool:
    """Whether all that the user's implementation would give is computed anew; eager gives its weights as well."""
    heads = [head for some, _, _ in made for head in some]
    whole = all(where is None for _, where, _ in made)
    return call.implementation == "sdpa" and whole and sorted(heads) == list(range(call.q.shape[1]))


def _joined(made: Sequence[Made]) -> Tensor:
    """All heads in their order."""
    order = torch.tensor([head for heads, _, _ in made for head in heads], device=made[0][2].device)
    return torch.cat([z for _, _, z in made], 1)[:, order.argsort()]


def _put(call: Call, heads: tuple[int, ...], where: Tensor | None, z: Tensor) -> None:
    index = torch.tensor(heads, device=z.device)
    new = z.transpose(1, 2).to(call.v.dtype)
    if where is not None:
        new = torch.where(where[:, :, None, None], new, call.z[:, :, index])
    call.z = call.z.index_copy(2, index, new)


def changed(call: Call) -> Changes:
    """All changes of the call's own softmax."""
    every = (s.program.changes for s in call.programs if isinstance(s.program, Changed))
    return functools.reduce(Changes.__add__, every, Changes())


def _others(call: Call) -> list[Standing]:
    """The programs that take the place of the softmax."""
    return [s for s in call.programs if not isinstance(s.program, Changed)]


def _rows_of(standing: Sequence[Standing]) -> Tensor | None:
    """[b, row] that any of them touches; None for all of them. The other rows keep the model's own z."""
    known = [s.where for s in standing if s.where is not None]
    return torch.stack(known).any(0) if known and len(known) == len(standing) else None


def fused_part(call: Call, heads: tuple[int, ...]) -> tuple[Part, list[kernel.Edit]]:
    """Some heads of a call and the changes of their softmax as edits of a kernel; for heads not in `by_numbers`."""
    return onto(received(call, heads), changed(call).of(heads))


def by_numbers(call: Call, heads: Sequence[int]) -> tuple[int, ...]:
    """Those of these heads of which only the pattern itself says how they attend, and no edit of a kernel."""
    taken = {head for s in _others(call) for head in s.heads} | changed(call).numbered
    return tuple(head for head in heads if head in taken)


def pattern_of(call: Call, component: str, heads: tuple[int, ...] | None, rows: Tensor | None) -> Tensor:
    """The pattern or the scores of chosen heads and rows [b, row], as the programs leave them: [b, head, row, key]."""
    wanted = heads if heads is not None else tuple(range(call.q.shape[1]))
    index = _row_indices(rows)
    others = [s for s in _others(call) if set(s.heads) & set(wanted)]
    if not others:
        return _own_pattern(call, component, wanted, index)
    found = _own_by_head(call, component, [s for s in others if s.whole()], wanted, index)
    for standing in others:
        for head, value in zip(standing.heads, _pattern_under(call, component, standing, index).unbind(1), strict=True):
            if head in wanted:
                found[head] = value if standing.whole() else torch.where(_at(standing, index), value, found[head])
    return torch.stack([found[head] for head in wanted], 1)


def _own_by_head(
    call: Call, component: str, whole: Sequence[Standing], wanted: Sequence[int], index: Tensor | None
) -> dict[int, Tensor]:
    """[b, row, key] of each head that keeps some of its own softmax."""
    own = tuple(head for head in wanted if not any(head in standing.heads for standing in whole))
    return dict(zip(own, _own_pattern(call, component, own, index).unbind(1), strict=True)) if own else {}


def _own_pattern(call: Call, component: str, wanted: tuple[int, ...], index: Tensor | None) -> Tensor:
    """The same of the model's own softmax under its changes."""
    computed = changed(call).whole(wanted)
    changes, part = changed(call).of(computed), received(call, computed)
    if index is None or index.ndim == 1:
        value = _asked(program(changes), component, replace(part, rows=index))
    elif changes.numbers or changes.own:
        value = _rows_of_each(_asked(program(changes), component, part), index)
    else:
        each = (_asked(program(of_example(changes, b)), component, part.example(b, rows))
                for b, rows in enumerate(index))  # fmt: skip
        value = torch.cat(list(each))
    return value[:, : len(wanted)]


def _asked(one: Changed, component: str, part: Part) -> Tensor:
    if component == "scores":
        return one.scores(part)
    found = one.pattern(part)
    assert found is not None
    return found


def _pattern_under(call: Call, component: str, standing: Standing, index: Tensor | None) -> Tensor:
    """The pattern of a program's heads: of the rows that any example asks for, then each example's own."""
    if component == "scores":
        raise EditError(
            f"{standing.what} attends in the model's place at heads {list(standing.heads)} and has no scores before a"
            " softmax: record the pattern instead."
        )
    if index is None or index.ndim == 1:
        return pattern_of_program(standing, received(call, standing.heads, standing.where, index))
    rows = index.unique()
    found = pattern_of_program(standing, received(call, standing.heads, standing.where, rows))
    return _rows_of_each(found, torch.searchsorted(rows, index))


def _at(standing: Standing, index: Tensor | None) -> Tensor:
    """Bool [b, row, 1]: which of the rows asked for a program is about."""
    assert standing.where is not None
    where = standing.where
    if index is not None:
        index = index.to(where.device)
        where = where[:, index] if index.ndim == 1 else where.gather(1, index)
    return where[..., None]


def _rows_of_each(value: Tensor, index: Tensor) -> Tensor:
    """[b, head, row, key] of each example's own rows [b, row]."""
    return torch.stack([one[:, at] for one, at in zip(value, index, strict=True)])


def _row_indices(rows: Tensor | None) -> Tensor | None:
    """[batch, row] Bool as indices: one list if all examples ask for the same rows, else a list per example."""
    if rows is None:
        return None
    if bool((rows == rows[:1]).all()):
        return rows[0].nonzero().flatten()
    counts = set(rows.sum(1).tolist())
    if len(counts) > 1:
        raise EditError(f"examples ask for different numbers of pattern rows ({sorted(counts)}); ask for equally many.")
    return torch.stack([r.nonzero().flatten() for r in rows])
