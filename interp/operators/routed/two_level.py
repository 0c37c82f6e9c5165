"""Routing on two levels: windows choose windows by their means, and rows read the keys of those that were chosen.

BiFormer (Zhu et al. 2023, arXiv 2303.08810), as the authors' code computes it: with the means q_w, k_w of each window,
a window reads the `keep` windows of the largest q_w.k_w', and its rows attend by softmax to all of their keys. The
code's means are over all heads together, so that these share the choice: that is `shared=True`, over the heads that the
operator is for. Clusters for each head separately are ours, as are runs of a text for windows, where a row sees its own
window in any case. `keep` equal to the number of windows is dense attention. The paper also has a convolution of v,
which is not part of a head and is not here. Cost: quadratic in length as computed here (scores of all keys, masked);
memory linear. Not while generating: a window's mean is over queries that are not in a cache. In a causal tower a
window's mean is over its later rows as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import alive, blocks, real_queries, visible, wide
from interp.operators.routed.chosen import Choosing, best, group_means, own_key


@dataclass(frozen=True, eq=False, repr=False)
class TwoLevel(Choosing):
    """Windows choose the windows that their rows read."""

    ordered = True
    whole = True

    size: int = 16
    """Tokens of a window of a text, or rows and columns of one on a grid."""
    keep: int = 4
    """How many windows a window reads."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens, in row-major order; tokens before them see and are seen by all."""
    shared: bool = False
    """Whether all heads of the operator choose the same windows."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.keep < 1:
            raise EditError(f"{self!r}: size and keep are at least 1.")

    def windows(self, keys: int, device: torch.device) -> Tensor:
        """[key], the window of each; negative for tokens outside of the grid."""
        at = torch.arange(keys, device=device)
        if self.grid is None:
            return at // self.size
        rows, columns = self.grid
        before = keys - rows * columns
        if before < 0:
            raise EditError(f"{self!r}: a grid of {rows * columns} tokens, and the call has {keys} keys.")
        at = at - before
        across = -(-columns // self.size)
        found = at // columns // self.size * across + at % columns // self.size
        return found.masked_fill(at < 0, -1)

    def chosen(self, part: Part, rows: Tensor, seen: Tensor) -> Tensor:
        of_keys = self.windows(part.k.shape[2], part.q.device)
        of_rows = of_keys[self.places(part)]
        count = int(of_keys.max()) + 1
        q = group_means(wide(part.q), of_rows, count, real_queries(part))
        k = group_means(wide(part.keys), of_keys, count, alive(part))
        guess = q @ k.transpose(-1, -2)
        if self.shared:
            guess = guess.sum(1, keepdim=True).expand_as(guess)
        readable = self._readable(part, of_rows, of_keys, count)
        picked = best(guess, self.keep, readable.expand_as(guess))
        mine = of_rows[rows].clamp(min=0)
        found = picked[:, :, mine][..., of_keys.clamp(min=0)]
        outside = (of_rows[rows] < 0)[:, None] | (of_keys < 0)
        if self.grid is None:
            outside = outside | (of_rows[rows][:, None] == of_keys) | own_key(part, rows)
        return found | outside

    def _readable(self, part: Part, of_rows: Tensor, of_keys: Tensor, count: int) -> Tensor:
        """Bool [example or 1, head or 1, window, window]: where some row of one sees some key of the other."""
        numbers = torch.arange(count, device=of_keys.device)
        into = (of_keys[:, None] == numbers).float()
        found = None
        for rows in blocks(part):
            out = (of_rows[rows][:, None] == numbers).float()
            new = (out.T @ (visible(part, rows).float() @ into)) > 0
            found = new if found is None else found | new
        assert found is not None
        return found
