"""What one attention call received for some of its heads: all that a head program has to go by.

The call is that of the model as it is, under any implementation: q and k after rotary positions and norms, keys of the
cache included. Its own mathematics are given as `scores`, `softmax` and `read`, so that a program is written from what
it does differently: `part.read(part.softmax(part.scores()))` is the model's own attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels.cpu.tiles import scores
from interp.kernels.masks.symbols import Mask


@dataclass(frozen=True, eq=False)
class _OneExample(Mask):
    """One example of a mask for a batch."""

    mask: Mask
    number: int

    def _own(self, x: Tensor) -> Tensor:
        return x[self.number : self.number + 1] if x.shape[0] > 1 else x

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return self._own(self.mask.visible(i, j))

    def additive(self, i: Tensor, j: Tensor) -> Tensor | None:
        found = self.mask.additive(i, j)
        return None if found is None else self._own(found)

    def reach(self, low: int, high: int, keys: int) -> tuple[int, int]:
        return self.mask.reach(low, high, keys)


@dataclass(frozen=True, eq=False)
class Part:
    """Some heads of a call. Queries are the last of the keys: row i of n is at key i + keys - n."""

    q: Float[Tensor, "example head query d"]
    k: Float[Tensor, "example kv key d"]
    """As the heads share them: each kv head serves `group` heads in a row. `keys` has one for every head."""
    v: Float[Tensor, "example kv key dv"]
    mask: Mask | None
    """What each query sees, in symbols; None sees all. `scores` has it in numbers."""
    scale: float
    softcap: float | None
    bias: Tensor | None
    sinks: Tensor | None
    """A learned score per head that takes weight and has no value."""
    heads: tuple[int, ...]
    """Their numbers in the layer."""
    where: Tensor | None = None
    """Bool [example, query]: whose z the model goes on with; None for all."""
    rows: Tensor | None = None
    """The numbers of the queries whose pattern is asked for; None for all."""

    @property
    def group(self) -> int:
        """How many heads read one kv head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def keys(self) -> Tensor:
        """k [example, head, key, d], one for every head."""
        return self.k.repeat_interleave(self.group, 1)

    @property
    def values(self) -> Tensor:
        """v [example, head, key, d], one for every head."""
        return self.v.repeat_interleave(self.group, 1)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """All but q, k and v, as the kernels call it."""
        names = ("mask", "scale", "softcap", "bias", "sinks")
        return {name: getattr(self, name) for name in names}

    def scores(self, rows: Tensor | None = None) -> Tensor:
        """What enters the softmax [example, head, row, key], float32 or better, -inf where hidden; of the rows given,
        else of those asked for."""
        of = {name: value for name, value in self.arguments.items() if name != "sinks"}
        return scores(self.q, self.k, rows=self.rows if rows is None else rows, **of)

    def softmax(self, s: Tensor, temperature: float = 1.0) -> Tensor:
        """Weights of such scores, with the learned sink's share taken off; rows that see nothing are 0."""
        wide = s
        if self.sinks is not None:
            wide = torch.cat([s, self.sinks.to(s)[None, :, None, None].expand(*s.shape[:3], 1)], -1)
        blind = wide.isneginf().all(-1, keepdim=True)
        wide = wide.masked_fill(blind, 0.0)  # such a row has no gradient either, not one that is no number
        return torch.softmax(wide / temperature, -1).masked_fill(blind, 0.0)[..., : s.shape[-1]]

    def read(self, weights: Tensor) -> Tensor:
        """Weights [example, head, row, key] times the values: z [example, head, row, d], in the weights' dtype."""
        return self._by_kv(weights, self.v.to(weights.dtype))

    def along_values(self, g: Tensor) -> Tensor:
        """Vectors [example, head, row, d] against the value of every key: [example, head, row, key]."""
        return self._by_kv(g, self.v.to(g.dtype).transpose(-1, -2))

    def _by_kv(self, x: Tensor, shared: Tensor) -> Tensor:
        """A product with what heads share, which is not copied for each of them."""
        together = x.unflatten(1, (shared.shape[1], self.group)).flatten(2, 3)
        return (together @ shared).unflatten(2, (self.group, -1)).flatten(1, 2)

    def example(self, number: int, rows: Tensor | None = None) -> Part:
        """One example of it, of whose pattern `rows` are asked for."""
        one = slice(number, number + 1)
        return replace(
            self, q=self.q[one], k=self.k[one], v=self.v[one], rows=rows,
            mask=None if self.mask is None else _OneExample(self.mask, number),
            bias=self.bias[one] if self.bias is not None and self.bias.shape[0] > 1 else self.bias,
            where=None if self.where is None else self.where[one],
        )  # fmt: skip
