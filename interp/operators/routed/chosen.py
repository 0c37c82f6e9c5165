"""What operators share that choose keys by content: a guess of every score, and the softmax over the best guesses.

Of row i the `keep` visible keys with the largest guess are kept, the later one where guesses are equal, and the others
hidden; the weights are the softmax of the model's own scores over what is left. The choice itself has no gradient, as
in all of the papers; the weights have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, places, visible


class Choosing(Operator):
    """Softmax attention over keys that are chosen by content."""

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        """Bool [example, head, row, key]: which of the keys that these rows see they keep."""
        raise NotImplementedError

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        seen = visible(part, rows).expand(*part.q.shape[:2], -1, -1)
        with torch.no_grad():
            kept = self.chosen(part, rows, seen) & seen
        return part.softmax(part.scores(rows).masked_fill(~kept, -torch.inf))


def best(guess: Tensor, keep: int, seen: Tensor) -> Tensor:
    """Bool, like the guess [..., key]: the `keep` largest among those seen, the later ones of equals."""
    if keep >= guess.shape[-1]:
        return seen
    order = guess.masked_fill(~seen, -torch.inf).flip(-1).sort(stable=True, dim=-1, descending=True).indices
    kept = torch.zeros_like(seen).scatter(-1, order[..., :keep], True)
    return kept.flip(-1) & seen


def own_key(part: Part, rows: Tensor) -> Tensor:
    """Bool [row, key]: the key at the row's own position."""
    return places(part)[rows][:, None] == torch.arange(part.k.shape[2], device=part.q.device)


def group_means(x: Tensor, group: Tensor, count: int, real: Tensor | None = None) -> Tensor:
    """Means [..., group, d] of positions [..., position, d] by their group [position]; 0 for groups without any."""
    member = (group[:, None] == torch.arange(count, device=x.device)).to(x)
    if real is None:
        return (member.T @ x) / member.sum(0).clamp(min=1)[:, None]
    weight = member.T * real[..., None, :].to(x)
    return (weight @ x) / weight.sum(-1).clamp(min=1)[..., None]
