"""Routing by clusters: rows attend to the keys that are nearest to the same centre.

Routing Transformer (Roy et al. 2021, arXiv 2003.05997): queries and keys of length 1 are put to the nearest of `count`
centres by their product, and a row sees the keys of its own cluster. There the centres are learned with the model and
each cluster takes equally many tokens. Here, in a trained head, centres are given, or found by spherical k-means on
the keys of the call (a start spread over the text, `rounds` rounds), and every token goes where it is nearest; a row
sees its own key in any case. Centres that are found know all keys of the call, also those that a tower hides from a
row, which only say which keys are in one cluster. Cost: quadratic in length as computed here (scores of all keys,
masked); memory linear. Not while generating unless the centres are given: they would be found anew in each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import alive, per_head, wide
from interp.operators.routed.chosen import Choosing, own_key


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Choosing):
    """Rows see the keys of their own cluster."""

    ordered = True

    count: int = 8
    """How many clusters."""
    centers: Tensor | None = None
    """[head, count, d]; None to find them in the call."""
    rounds: int = 10
    """How many rounds of k-means find the centres."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.rounds < 0:
            raise EditError(f"{self!r}: count is at least 1 and rounds at least 0.")

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Centres that are found are of all keys together."""
        return self.centers is None

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        centers = self.found(part)
        of_rows = (wide(part.q[:, :, rows]) @ centers.transpose(-1, -2)).argmax(-1)
        of_keys = (wide(part.keys) @ centers.transpose(-1, -2)).argmax(-1)
        return (of_rows[..., :, None] == of_keys[..., None, :]) | own_key(part, rows)

    def found(self, part: Part) -> Tensor:
        """The centres [example or 1, head, count, d], of length 1."""
        if self.centers is not None:
            given = per_head(self.centers, part, "centers=").to(wide(part.q))
            return torch.nn.functional.normalize(given, dim=-1)[None]
        x = torch.nn.functional.normalize(wide(part.keys), dim=-1)
        real = alive(part).expand(x.shape[:3]).to(x)
        order = (real.cumsum(-1) - 1).clamp(min=0) * self.count / real.sum(-1, keepdim=True).clamp(min=1)
        member = order.floor().long().clamp(max=self.count - 1)
        centers = _centers(x, real, member, self.count, torch.zeros_like(x[:, :, :1]).expand(-1, -1, self.count, -1))
        for _ in range(self.rounds):
            member = (x @ centers.transpose(-1, -2)).argmax(-1)
            centers = _centers(x, real, member, self.count, centers)
        return centers


def _centers(x: Tensor, real: Tensor, member: Tensor, count: int, before: Tensor) -> Tensor:
    """Directions of the clusters' means; a cluster without a key stays where it was."""
    weight = torch.nn.functional.one_hot(member, count).to(x) * real[..., None]
    total = weight.transpose(-1, -2) @ x
    none = total.norm(dim=-1, keepdim=True) == 0
    return torch.where(none, before, torch.nn.functional.normalize(total, dim=-1))
