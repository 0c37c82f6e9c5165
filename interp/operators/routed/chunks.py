"""Dynamic hierarchical attention: chunks of different length represent their tokens, and rows keep the best chunks'
keys.

After DHSA (arXiv 2510.24606): a chunk is represented by the sum of its tokens over the root of their number, that is
their mean times sqrt(length); the product of a query's chunk with a key's chunk is the guess for all pairs of their
tokens, and a row keeps the `budget` keys with the largest guesses. There a small trained network sets the bounds of
chunks. Here they are given as positions, or set where neighbouring keys agree least: the `count` - 1 smallest cosines
of k_j and k_j+1, which is ours, as is that a row keeps its own key in any case.
Cost: quadratic in length as computed here (scores of all keys, masked); memory linear. Not while generating: a chunk
represents queries that are not in a cache. In a causal tower a chunk represents its later rows as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import alive, real_queries, wide
from interp.operators.routed.chosen import Choosing, best, own_key


@dataclass(frozen=True, eq=False, repr=False)
class Chunks(Choosing):
    """Rows keep the keys of the chunks that their own chunk is most like."""

    ordered = True
    whole = True

    budget: int = 64
    """Keys that a row keeps, without its own."""
    count: int = 8
    """How many chunks, where the keys say where they begin."""
    starts: tuple[int, ...] | None = None
    """Where chunks begin, after the first one, which begins at 0."""

    def __post_init__(self) -> None:
        if self.budget < 1 or self.count < 1:
            raise EditError(f"{self!r}: budget and count are at least 1.")
        if self.starts is not None and list(self.starts) != sorted({n for n in self.starts if n > 0}):
            raise EditError(f"{self!r}: starts are positions after 0, in order.")

    def chunks(self, part: Part) -> Tensor:
        """[example, head, key]: the chunk of each."""
        k = wide(part.keys)
        if self.starts is not None:
            at = torch.arange(k.shape[2], device=k.device)
            bounds = torch.tensor(self.starts, device=k.device, dtype=torch.long)
            return torch.searchsorted(bounds, at, right=True).expand(k.shape[:3])
        alike = torch.nn.functional.cosine_similarity(k[:, :, 1:], k[:, :, :-1], dim=-1)
        both = alive(part)[..., 1:] & alive(part)[..., :-1]
        begins = best(-alike, min(self.count - 1, alike.shape[-1]), both.expand_as(alike)) & (self.count > 1)
        return torch.nn.functional.pad(begins.long().cumsum(-1), (1, 0))

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        of_keys = self.chunks(part)
        of_rows = of_keys[:, :, self.places(part)]
        count = int(of_keys.max()) + 1
        q = _standing(wide(part.q), of_rows, count, real_queries(part))
        k = _standing(wide(part.keys), of_keys, count, alive(part))
        pairs = q @ k.transpose(-1, -2)
        mine = pairs.gather(2, of_rows[:, :, rows][..., None].expand(-1, -1, -1, count))
        guess = mine.gather(3, of_keys[:, :, None].expand(-1, -1, len(rows), -1))
        return best(guess, self.budget, seen) | own_key(part, rows)


def _standing(x: Tensor, group: Tensor, count: int, real: Tensor) -> Tensor:
    """What represents each chunk [example, head, chunk, d]: the sum over the root of how many."""
    member = (group[..., None, :] == torch.arange(count, device=x.device)[:, None]) * real[:, :, None].to(x)
    return member @ x / member.sum(-1, keepdim=True).clamp(min=1).sqrt()
