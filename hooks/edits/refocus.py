"""Weight moved off sinks onto what a head looks at, in the rows and heads that look there: VAR as an edit.

Kang et al., ICLR 2025 (Visual Attention Sink, arXiv 2503.03321). With V the image tokens, S the sinks (of text and of
image alike), T = V less S, and row i of a head with weights A:

    looks     A[i, V] >= least   and   A[i, T] >= rho A[i, V]
    then      A[i, s] <- (1 - fraction_moved) A[i, s]                              s in S
              A[i, t] <- A[i, t] + fraction_moved A[i, S] A[i, t] / A[i, T]        t in T

so that rows sum to what they did; rows and heads that do not look stay as they are. Whether a row looks is read off the
pattern as it is in the run, layer by layer, and in every step of decoding; both passes are the kernels', without A.
`fraction_moved` is what leaves the sinks. The notes on the paper write it as p; the authors' code multiplies sinks by
its own p, which is what they keep: its 0.6 is 0.4 here. Which of the two the paper's numbers mean is not known.
The code tests A[i, S in V] / A[i, V] <= its rho, which is 1 less the one here: both agree at 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.edits.edits import AtHeads, AttentionEdit, Place
from interp.hooks.errors import EditError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.stand.call import Call, received
from interp.hooks.stand.softmax import Changes, Fused
from interp.kernels import edits as kernel
from interp.kernels.attention import attend


@dataclass(frozen=True, eq=False, repr=False)
class Refocus(AttentionEdit):
    """A fraction of the weight on `sinks` goes to the other tokens of `image`, where a head looks at these enough.

    `interp.vision.redistribute` makes one a layer from the sinks it finds there. `least=0, rho=0` moves in every row
    that gives any weight to the image.
    """

    by_head = True

    sinks: Positions = "first"
    """The keys that lose weight."""
    image: Positions = "image"
    """The keys that receive it, without the sinks."""
    fraction_moved: float = 0.4
    """The part of the weight on sinks that is moved, 0 to 1."""
    least: float = 0.2
    """The least weight on the image with which a row is changed, 0 to 1."""
    rho: float = 0.5
    """The least part of that weight that has to be on tokens that are no sinks, 0 to 1."""

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in (self.fraction_moved, self.least, self.rho)):
            raise EditError(f"{self!r}: fraction_moved, least and rho are shares, from 0 to 1.")

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        """A redistribution for the heads that look in the same rows."""
        source = place.keys(self.sinks)
        target = place.keys(self.image) & ~source
        looks = self.looks(call, place)
        groups: dict[tuple[object, ...], list[int]] = {}
        for n in range(len(place.heads)):
            if bool(looks[:, n].any()):
                groups.setdefault(tuple(looks[:, n].flatten().tolist()), []).append(n)
        found: list[AtHeads] = []
        for some in groups.values():
            heads = tuple(place.heads[n] for n in some)
            edit = kernel.Redistribute(source, target, self.fraction_moved, heads, looks[:, some[0]])
            found.append((heads, Fused(Changes(edits=(edit,)))))
        return found

    def looks(self, call: Call, place: Place) -> Tensor:
        """Bool [example, head, row]: the rows of each head that the edit changes."""
        source, image = place.keys(self.sinks), place.keys(self.image)
        part = received(call, place.heads)
        rows = None if place.rows is None else place.rows.any(0).nonzero().flatten()
        with torch.no_grad():
            stats = attend(
                part.q, part.k, None, stats=["mass:image", "mass:rest"], rows=rows, **part.arguments,
                key_sets={"image": image, "rest": image & ~source},
            ).stats  # fmt: skip
        whole, rest = stats["mass:image"], stats["mass:rest"]
        found = (whole >= self.least) & (rest >= self.rho * whole) & (rest > 0)
        if place.rows is None or rows is None:
            return found
        return torch.zeros_like(part.q[..., 0], dtype=torch.bool).index_copy(2, rows, found) & place.rows[:, None]
