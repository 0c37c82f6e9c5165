"""Head programs: what attends in the place of a head's own softmax, and who put it there.

A head has one program in a call. Changes of the model's own softmax (`hooks/stand/softmax.py`) act together as one;
a second program at the same head and rows is an error that names both. One that is `Recurrent` keeps a state while a
model generates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part


@runtime_checkable
class HeadProgram(Protocol):
    """Attention of some heads, from what a call received for them."""

    def z(self, part: Part) -> Tensor:
        """[example, head, query, d], of every query."""
        ...

    def pattern(self, part: Part) -> Tensor | None:
        """The weights [example, head, query, key] behind it, of every query or of `part.rows` alone; None where there
        are none."""
        ...


@runtime_checkable
class Recurrent(HeadProgram, Protocol):
    """A program that can go on from a state while a model generates (`hooks/states.py`): what its rows read of the
    keys, in a size that does not grow with them. States are values: `grow` returns a new one."""

    def start(self, part: Part) -> Any:
        """The state of those keys of a part that its one query sees."""
        ...

    def grow(self, state: Any, part: Part) -> Any:
        """The state with the one key of a part, which comes after all that are in it."""
        ...

    def answer(self, state: Any, part: Part) -> Tensor:
        """z [example, head, 1, d] of a part's one query, which sees all that is in the state; of the keys the part has
        the last one only."""
        ...


@dataclass(frozen=True, eq=False)
class Standing:
    """A program at some heads of one call."""

    program: HeadProgram
    heads: tuple[int, ...]
    what: str
    """Who put it there, for errors."""
    where: Tensor | None = None
    """Bool [example, query] that it changes; None for all."""
    note: Callable[[], None] = lambda: None
    """Called when it has acted."""

    def meets(self, other: Standing) -> int | None:
        """A head that both are about in the same row, if there is one."""
        both = sorted(set(self.heads) & set(other.heads))
        if not both or (
            self.where is not None and other.where is not None and not bool((self.where & other.where).any())
        ):
            return None
        return both[0]

    def whole(self) -> bool:
        """Whether it is about every row."""
        return self.where is None or bool(self.where.all())


def refuse_two(one: Standing, other: Standing) -> None:
    """Raise where both say how one head attends in one row."""
    head = one.meets(other)
    if head is not None:
        raise EditError(
            f"{one.what} and {other.what} both change how head {head} attends: use one of them, or give them different"
            " heads, positions or rows."
        )


def z_of(standing: Standing, part: Part) -> Tensor:
    """What the program gives, compared with what z is: [example, head, query, d], finite where it is used."""
    z = standing.program.z(part)
    wanted = (*part.q.shape[:3], part.v.shape[-1])
    _refuse_other(standing, "z", z, [wanted], part)
    seen = z if part.where is None else z[part.where[:, None].expand(-1, z.shape[1], -1)]
    if not bool(torch.isfinite(seen).all()):
        given = all(bool(torch.isfinite(x).all()) for x in (part.q, part.k, part.v))
        why = "Rows that see no key, as padding does, have no softmax: `part.softmax` gives these the weight 0."
        raise EditError(
            f"{standing.what} gave a z that is not finite at heads {list(part.heads)}. "
            + (why if given else "The q, k or v that the model gave it are not finite either.")
        )
    return z


def pattern_of_program(standing: Standing, part: Part) -> Tensor:
    """Its weights [example, head, row, key] of the rows asked for; refused by name where it has none."""
    found = standing.program.pattern(part)
    if found is None:
        raise EditError(
            f"{standing.what} attends in the model's place at heads {list(part.heads)} and gives no pattern. The"
            " pattern of q and k is not the one that the model used. Record z, or record the pattern without it."
        )
    batch, heads, queries, keys = *part.q.shape[:3], part.k.shape[2]
    asked = queries if part.rows is None else len(part.rows)
    _refuse_other(standing, "pattern", found, [(batch, heads, n, keys) for n in dict.fromkeys((queries, asked))], part)
    return found if part.rows is None or found.shape[2] == asked else found[:, :, part.rows]


def _refuse_other(standing: Standing, what: str, found: object, shapes: Sequence[tuple[int, ...]], part: Part) -> None:
    """Raise for what is no tensor of one of these shapes on the call's device."""
    at = part.q.device
    if torch.is_tensor(found) and tuple(found.shape) in shapes and found.device == at and found.is_floating_point():
        return
    came = f"{list(found.shape)} {found.dtype} on {found.device}" if torch.is_tensor(found) else type(found).__name__
    raise EditError(
        f"{standing.what}: {what} is a floating tensor {' or '.join(str(list(s)) for s in shapes)} on {at}, got {came}."
    )
