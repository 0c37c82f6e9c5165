"""Edits that are functions of the user's own: of the tensor at a site, and of how a head attends.

`Apply` is for those who come with hook functions; `Program` puts any attention in the place of heads' softmax. Both
work wherever edits do (`m.run`, `m.edited`, `m.generate`, gradients, sweeps by full passes), and cannot be written
down: where a run is kept to go on later, they are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import AtHeads, AttentionEdit, Place, ValueEdit
from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call
from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import content


class Unwritten:
    """What edits share whose content is a function.

    Two are equal where their functions are the same object, or come from the same lines of code with equal defaults
    and equal values of what they close over; what a function reads elsewhere (globals, attributes) is not compared.
    """

    def _content(self) -> tuple[object, ...]:
        return (type(self), *(told(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    @property
    def written(self) -> str:
        """How it prints; of what it does nothing can be written down."""
        return f"{self!r} (a function)"

    def refuse_unwritten(self) -> None:
        """Raise: a function cannot be written down."""
        raise EditError(
            f"{self!r} holds a function, which cannot be written down, so a directory would not say what was run: leave"
            " out= out, or use an edit that is a value."
        )


def told(value: object, within: tuple[object, ...] = ()) -> object:
    """Something hashable that says what a value is, as well as that can be said of a function; `within` are functions
    that close over it, which it may close over itself."""
    inner = (*within, value)
    if any(value is one for one in within):
        return "itself"
    if isinstance(value, partial):
        return ("partial", *(told(part, inner) for part in (value.func, value.args, sorted(value.keywords.items()))))
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return (value.__code__, *(told(part, inner) for part in (value.__defaults__ or (), closed)))
    if isinstance(value, list | tuple):
        return tuple(told(one, within) for one in value)
    found = content(value)
    try:
        hash(found)
    except TypeError:
        return ("object", id(value))
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Unwritten, ValueEdit):
    """Any function of the tensor at a site: `Apply("L5.H3.z", lambda z: z.relu())`.

    It gets a copy of the site's tensor, [row, position, ..., d] with the site's heads alone, and returns what the model
    uses at the positions and rows named: a tensor of the same shape, dtype and device. Gradients flow through.
    """

    function: Callable[[Tensor], Tensor] | None = None
    """From the site's tensor to a tensor of the same shape, dtype and device."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise EditError(f"Apply({self.site!r}) needs a function of the tensor at the site, got {self.function!r}.")

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        assert self.function is not None
        new = self.function(x.clone())
        if not torch.is_tensor(new):
            raise EditError(
                f"{self!r}: the function returned {type(new).__name__}; return the tensor the model shall go on with."
            )
        if (new.shape, new.dtype, new.device) != (x.shape, x.dtype, x.device):
            raise EditError(
                f"{self!r}: the site holds {_kind(x)}, and the function returned {_kind(new)}: return the same shape,"
                " dtype and device."
            )
        return new


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


@dataclass(frozen=True, eq=False, repr=False)
class Program(Unwritten, AttentionEdit):
    """Heads attend by a program of yours: `Program("L5.H3", mine)`.

    An object with `z(part)`, the output [example, head, query, d], and `pattern(part)`, its weights [example, head,
    query, key] or None where it has none; or a function of the part that gives z. `part` is what the call received for
    these heads (`interp.hooks.stand.part.Part`): q, k, v, mask, scale and so on, with the model's own computation at
    hand, so that `part.read(part.softmax(part.scores()))` changes nothing. A recorded pattern and statistics are those
    of the program's pattern, and refused where it has none. Gradients flow through. An object that also has `start`,
    `grow` and `answer` continues from its own state while the model generates (`interp.hooks.stand.program`).
    """

    program: Any = None
    """An object with `z(part)`, or a function of the part."""

    def __post_init__(self) -> None:
        if not (callable(self.program) or callable(getattr(self.program, "z", None))):
            raise EditError(
                f"Program({self.site!r}) needs an object with z(part), and pattern(part) where it has one, or a"
                f" function of the part that gives z; got {self.program!r}."
            )

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        whole = all(callable(getattr(self.program, name, None)) for name in ("start", "grow", "answer"))
        return [(place.heads, (_GivenState if whole else _Given)(self.program))]


@dataclass(frozen=True, eq=False)
class _Given:
    """What a user gave, as a head program."""

    given: Any

    def z(self, part: Part) -> Any:
        return getattr(self.given, "z", self.given)(part)

    def pattern(self, part: Part) -> Any:
        own = getattr(self.given, "pattern", None)
        return None if own is None else own(part)


@dataclass(frozen=True, eq=False)
class _GivenState(_Given):
    """One that has a state."""

    def start(self, part: Part) -> Any:
        return self.given.start(part)

    def grow(self, state: Any, part: Part) -> Any:
        return self.given.grow(state, part)

    def answer(self, state: Any, part: Part) -> Any:
        return self.given.answer(state, part)
