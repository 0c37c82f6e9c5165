"""What an implementation can compute, declared; whatever it does not declare is refused, by name.

Each implementation says in sets which masks, edits and statistics it knows, which options of a call it takes, whose
gradients it gives, and in which dtypes and on which devices it works. `attend`, `impl="auto"` and `explain` all read
these sets. Its own dispatch goes by the tables that the sets are the keys of, so what is declared is what is there.
What no set can say (how many of something, two things at once) is left to an implementation's `limits`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from interp.kernels.edits import Form
from interp.kernels.errors import AttentionError, said
from interp.kernels.masks.symbols import Mask
from interp.kernels.request import Request

OPTIONS = {
    "softcap": "a soft cap",
    "bias": "an additive mask or bias",
    "sinks": "learned sinks",
    "rows": "a choice of rows",
    "no v": "a call without values",
    "width": "values of another width than keys",
    "places": "distances between places",
    "lse": "the log-sum-exp of another forward pass",
}
"""Names of `Request.options`, and how a refusal calls them."""

LISTED = 60
"""A refusal lists what there is instead in up to so many letters."""


class _Anything(frozenset[Any]):
    """For what is computed by a protocol or by torch's operators, whatever it is."""

    def __contains__(self, thing: object) -> bool:
        return True


ANY = _Anything()
FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Abilities:
    """`masks` are classes: of a subclass nothing is known. `edits` are `Edit.form`s, `stats` kinds, `options` those of
    `OPTIONS`, `gradients` as `Request.gradients` names them.
    """

    masks: Collection[type[Mask]]
    edits: Collection[Form]
    stats: Collection[str]
    options: Collection[str]
    gradients: Collection[str]
    dtypes: Collection[torch.dtype]
    devices: Collection[str]

    def refusal(self, made: Request) -> str | None:
        """The first thing asked for that is not declared, in a sentence."""
        asked: tuple[tuple[Iterable[Any], Collection[Any], str], ...] = (
            ([made.q.device.type], self.devices, "device {}"),
            ([made.q.dtype], self.dtypes, "dtype {}"),
            ([type(made.mask)], self.masks, "mask {}"),
            ([OPTIONS.get(x, x) for x in made.options if x not in self.options], (), "{}"),
            ([e.form for e in made.edits], self.edits, "edit {}"),
            ([s.kind for s in made.stats], self.stats, "statistic {}"),
            (made.gradients(), self.gradients, "a gradient of {}"),
        )
        return next(
            (_sentence(says, x, there) for things, there, says in asked for x in things if x not in there), None
        )

    def demand(self, made: Request) -> None:
        """Raise where something is asked for that is not declared."""
        reason = self.refusal(made)
        if reason is not None:
            raise AttentionError(f"this cannot be computed here: {reason}")


def _sentence(says: str, came: object, there: Collection[Any]) -> str:
    """Names what is not there, and where it is little, what is."""
    name, listed = says.format(said(came)), ", ".join(sorted(map(said, there)))
    return f"{name} is not one of {listed}" if 0 < len(listed) < LISTED else f"{name} is not among what it can do"
