"""Heads of one tower with their matrices, in the order of their sites: what methods on weights begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.heads.kinds.reading import head_names, head_sites, heads_of, tower_of
from interp.heads.weights.matrices import HeadMatrices, LayerMatrices
from interp.hooks.errors import ModelError

if TYPE_CHECKING:
    from interp.model import Model

RANK = 1e-6
"""Singular values below this share of the largest are rounding, and their directions no part of a space."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """One head: W_V, W_Q and W_K [d, d_head] (the norm's gain folded in) and W_O [d_head, d], float64."""

    name: str
    layer: int
    v: Tensor
    o: Tensor
    q: Tensor | None
    k: Tensor | None
    why: str = ""
    """Why there are no q and k."""

    def qk(self) -> tuple[Tensor, Tensor]:
        """W_Q and W_K, or the reason that there are none."""
        if self.q is None or self.k is None:
            raise ModelError(f"{self.name}: {self.why}.")
        return self.q, self.k


def weights_of(model: Model, heads: str) -> tuple[HeadMatrices, list[HeadWeights]]:
    """The heads that a pattern means, with their matrices."""
    sites = head_sites(model, heads)
    layers = [s.layer for s in sites if s.layer is not None]
    matrices = HeadMatrices(model, tower_of(model, sites), layers)
    names, found = iter(head_names(model, sites)), []
    for site, layer in zip(sites, layers, strict=True):
        of = matrices.of(layer)
        found += [_one(next(names), layer, of, h) for h in heads_of(model, site)]
    return matrices, found


def _one(name: str, layer: int, of: LayerMatrices, head: int) -> HeadWeights:
    q, k = (None if one is None else one[head] for one in (of.q, of.k))
    return HeadWeights(name, layer, of.v[head], of.o[head], q, k, of.why)


def basis(columns: Tensor) -> Tensor:
    """An orthonormal basis [d, rank] of the columns' space; of zeros, no column."""
    u, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    largest = float(sizes[0]) if len(sizes) else 0.0
    return u[:, sizes > RANK * largest] if largest > 0 else u[:, :0]


def product(left: Tensor, right: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of `left right`, [d, n] [n, e], by matrices no larger than n: U [d, n], the
    values, V^T [n, e]."""
    a, ra = torch.linalg.qr(left.double())
    b, rb = torch.linalg.qr(right.double().mT)
    u, sizes, vt = torch.linalg.svd(ra @ rb.mT)
    return (a @ u)[:, :rank], sizes[:rank], (vt @ b.mT)[:rank]
