"""Scores that do not come from the text: constant or random queries or keys, with the model's own values.

After "Deconstructing Attention" (arXiv 2510.11602), which trains models whose scores come from random vectors, from a
fixed text or from a token's own embedding, and asks what is lost. In a trained head, the softmax is of scale q'.k' with

    own      the call's own vectors
    mean     for q: the mean over the rows that are no padding, the same for every row
    random   one normal vector for each position, by the seed, the same in every text, `spread` times as long
    tensors  [head, d], the same for every position, or [head, position, d], for positions from 0 on

each for q and for k. A k that is the same everywhere makes all scores of a row equal, which is
`interp.edits.UniformAttention`, and is refused. Masks, biases and sinks are the model's. Random vectors belong to
positions, counted from the start of a row, padding included, and do not differ between heads of one number.
Cost: that of attention. While generating, as in a whole pass, but for q="mean", which is refused there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.kernels.attention import attend
from interp.operators.common.operator import Operator, per_head, ratio, real_queries, wide

POSITIONS = 256
"""Random vectors are drawn for so many positions at a time, so that a longer text begins with the same ones."""


@dataclass(frozen=True, eq=False, repr=False)
class StaticQK(Operator):
    """Softmax attention whose queries or keys do not come from the text."""

    q: str | Tensor = "mean"
    """The queries: "own", "mean", "random", or a tensor [head, d] or [head, position, d]."""
    k: str | Tensor = "own"
    """The keys: "own", "random", or a tensor [head, position, d]."""
    spread: float = 1.0
    """What random vectors are multiplied by."""
    seed: int = 0
    """The seed of random vectors."""

    def __post_init__(self) -> None:
        if isinstance(self.q, str) and self.q not in ("own", "mean", "random"):
            raise EditError(f"{self!r}: q is 'own', 'mean', 'random' or a tensor.")
        if isinstance(self.k, str) and self.k not in ("own", "random"):
            raise EditError(f"{self!r}: k is 'own', 'random' or a tensor; the same key everywhere is UniformAttention.")
        if isinstance(self.k, Tensor) and self.k.ndim != 3:
            raise EditError(f"{self!r}: k is [head, position, d]; the same key everywhere is UniformAttention.")
        if isinstance(self.q, Tensor) and self.q.ndim not in (2, 3):
            raise EditError(f"{self!r}: q is [head, d] or [head, position, d], got {list(self.q.shape)}.")

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """A mean is over all rows."""
        return isinstance(self.q, str) and self.q == "mean"

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Vectors that belong to positions."""
        if isinstance(self.q, Tensor):
            return self.q.ndim == 3 or not self._own_keys
        return self.q == "random" or not self._own_keys

    @property
    def _own_keys(self) -> bool:
        return isinstance(self.k, str) and self.k == "own"

    def z(self, part: Part) -> Tensor:
        own = self._put(part)
        z = attend(own.q, own.k, own.v, **own.arguments).z
        assert z is not None
        return z

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        return part.softmax(self._put(part).scores(rows))

    def _put(self, part: Part) -> Part:
        if not self._own_keys:
            at = torch.arange(part.k.shape[2], device=part.q.device)
            part = replace(part, k=self._vectors(self.k, part, at, 1).to(part.k.dtype), v=part.values)
        if isinstance(self.q, str) and self.q == "own":
            return part
        if isinstance(self.q, str) and self.q == "mean":
            real = real_queries(part)[..., None].to(wide(part.q))
            mean = ratio((wide(part.q) * real).sum(2, keepdim=True), real.sum(2, keepdim=True))
            return replace(part, q=mean.expand(part.q.shape).to(part.q.dtype).contiguous())
        return replace(part, q=self._vectors(self.q, part, self._at(part), 0).to(part.q.dtype))

    def _at(self, part: Part) -> Tensor:
        """[query], which vector each has."""
        one = isinstance(self.q, Tensor) and self.q.ndim == 2
        return torch.zeros(part.q.shape[2], dtype=torch.long, device=part.q.device) if one else self.places(part)

    def _vectors(self, given: str | Tensor, part: Part, at: Tensor, which: int) -> Tensor:
        """[example, head, position, d]"""
        if isinstance(given, str):
            found = random_vectors(int(at[-1]) + 1, len(part.heads), part.q.shape[-1], 2 * self.seed + which)
            found = found.to(part.q.device) * self.spread
        else:
            found = per_head(given, part, "q=" if which == 0 else "k=")
            if found.ndim == 2:
                found, at = found[:, None], torch.zeros_like(at)
        if found.shape[-1] != part.q.shape[-1] or found.shape[1] <= int(at[-1]):
            raise EditError(
                f"{self!r}: vectors are {list(found.shape[1:])} [position, d], and the call has {int(at[-1]) + 1}"
                f" positions of width {part.q.shape[-1]}."
            )
        chosen = found[:, at][None].expand(part.q.shape[0], -1, -1, -1)
        return chosen.contiguous()


def random_vectors(positions: int, heads: int, d: int, seed: int) -> Tensor:
    """[head, position, d], standard normal; the same for a position however many there are."""
    found = []
    for start in range(0, positions, POSITIONS):
        random = torch.Generator().manual_seed((seed << 20) + start)
        found.append(torch.randn(heads, POSITIONS, d, generator=random, dtype=torch.float64))
    return torch.cat(found, 1)[:, :positions]
