"""A low-rank guess of the scores: rows keep the keys whose guess is largest.

After Sparsifiner (Wei et al. 2023, arXiv 2303.13755): queries and keys are projected to fewer dimensions, the keys'
tokens to fewer tokens, C = softmax(scale q' k''), and brought back by a sparse basis B; the guess is C B, and a row
keeps the share `keep` of its visible keys. There the projections and the basis are learned. Here the dimensions are the
`rank` main directions of the call's keys (their right singular vectors), and tokens are runs of `pool`, whose mean
represents them; both are ours. A row keeps its own key in any case. Cost: quadratic in length as computed here (scores
of all keys, masked); memory linear. While generating, the directions are those of the keys so far, so that a step may
choose otherwise than a whole pass does: refused unless the basis is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import alive, per_head, softmax, wide
from interp.operators.routed.chosen import Choosing, group_means, own_key


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Choosing):
    """Rows keep the keys of the largest scores in few dimensions."""

    ordered = True

    rank: int = 8
    """How many dimensions the guess has; a basis that is given says it itself."""
    pool: int = 1
    """Keys that are guessed together."""
    keep: float = 0.25
    """The share of its visible keys that a row keeps."""
    basis: Tensor | None = None
    """[head, d, rank]; None for the main directions of the call's keys."""

    def __post_init__(self) -> None:
        if not (self.rank >= 1 and self.pool >= 1 and 0 < self.keep <= 1):
            raise EditError(f"{self!r}: rank and pool are at least 1 and keep is in (0, 1].")

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Directions that are found are of all keys together."""
        return self.basis is None

    def directions(self, part: Part) -> Tensor:
        """[example or 1, head, d, rank]"""
        if self.basis is not None:
            return per_head(self.basis, part, "basis=").to(wide(part.q))[None]
        k = wide(part.keys) * alive(part)[..., None]
        return torch.linalg.eigh(k.transpose(-1, -2) @ k).eigenvectors[..., -self.rank :]

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        basis = self.directions(part)
        q, k = wide(part.q[:, :, rows]) @ basis, wide(part.keys) @ basis
        group = torch.arange(k.shape[2], device=k.device) // self.pool
        count = int(group.max()) + 1
        pooled = group_means(k, group, count, alive(part))
        some = torch.zeros(*seen.shape[:3], count, device=k.device).index_add(3, group, seen.float()) > 0
        guess = softmax(q @ pooled.transpose(-1, -2) * part.scale, some)[..., group]
        return share_of(guess, self.keep, seen) | own_key(part, rows)


def share_of(guess: Tensor, share: float, seen: Tensor) -> Tensor:
    """Bool, like the guess [..., key]: of each row's visible keys the largest `share`, at least one, the later ones of
    equals."""
    order = guess.masked_fill(~seen, -torch.inf).flip(-1).sort(stable=True, dim=-1, descending=True).indices
    keep = torch.ceil(seen.sum(-1, keepdim=True) * share - 1e-9)
    among = torch.arange(guess.shape[-1], device=guess.device) < keep
    return torch.zeros_like(seen).scatter(-1, order, among.expand_as(seen)).flip(-1) & seen
