"""What a probe is made of: the reader of efficient probing, queries of regions, and the decoder of the brain encoder.

All read tokens x [example, token, D], which queries are matched with by `keys` (x, with places added or not), and say
where they look. `regions` gives each target the number of the query that it reads; without it every target reads all
queries. The decoder is one layer of DETR's (post-norm), as the transformer brain encoder has it: from nothing, with
the queries added where positions are,

    h <- norm(h + self-attention(q = k = h + u, v = h))
    h <- norm(h + cross-attention(q = h + u, k = keys, v = x))      looks: mean over its heads
    h <- norm(h + W_2 relu(W_1 h)),   then a last norm
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.hooks.errors import InputsError

Looks = Float[Tensor, "example query token"]


class Reader(nn.Module):
    """Efficient probing: `queries` of width D, one projection, a linear head."""

    def __init__(
        self, width: int, outputs: int, *, queries: int, d_out: int, regions: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.regions, self.width = regions, width
        each = width // d_out
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.values = nn.Linear(width, each, bias=False)
        self.norm = nn.BatchNorm1d(each if regions is None else queries * each, eps=1e-6, affine=False)
        self.head = nn.Parameter(torch.zeros(outputs, each))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def looks(self, x: Tensor, keys: Float[Tensor, "example token d"]) -> Looks:
        """Softmax over tokens."""
        return (self.queries @ keys.transpose(1, 2) * self.width**-0.5).softmax(-1)

    def forward(self, x: Tensor, keys: Tensor) -> Float[Tensor, "example output"]:
        weights, values = self.looks(x, keys), self.values(x)
        if self.regions is not None:
            z = self.norm((weights @ values).flatten(1)).view(len(x), len(self.queries), -1)
            return (z[:, list(self.regions)] * self.head).sum(-1) + self.bias
        groups = values.view(*values.shape[:2], len(self.queries), -1)
        z = self.norm(torch.einsum("bqt,btqd->bqd", weights, groups).flatten(1))
        return z @ self.head.T + self.bias


class Decoder(nn.Module):
    """One decoder layer of the width of the tokens, and a linear head that reads each target off its region's query."""

    def __init__(
        self, width: int, outputs: int, *, queries: int, regions: Sequence[int], heads: int, wide: int, dropout: float
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputsError(f"heads= of a decoder must divide the width {width}; got {heads}.")
        self.regions = regions
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.own, self.cross = (nn.MultiheadAttention(width, heads, dropout, batch_first=True) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, width))
        self.norms, self.drop = nn.ModuleList(nn.LayerNorm(width) for _ in range(4)), nn.Dropout(dropout)
        self.head = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def _run(self, x: Tensor, keys: Tensor) -> tuple[Tensor, Looks]:
        u = self.queries.expand(len(x), -1, -1)
        h = self.norms[0](self.drop(self.own(u, u, torch.zeros_like(u), need_weights=False)[0]))
        read, looks = self.cross(h + u, keys, x)
        h = self.norms[1](h + self.drop(read))
        return self.norms[3](self.norms[2](h + self.drop(self.mlp(h)))), looks

    def looks(self, x: Tensor, keys: Float[Tensor, "example token d"]) -> Looks:
        """Weights of the cross-attention, mean over heads."""
        return self._run(x, keys)[1]

    def forward(self, x: Tensor, keys: Tensor) -> Float[Tensor, "example output"]:
        h = self._run(x, keys)[0]
        return (h[:, list(self.regions)] * self.head).sum(-1) + self.bias
