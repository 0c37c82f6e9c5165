"""Virtual heads: what a chain of heads does that read each other's writes, two or three of them.

Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). With row vectors, head B of a later layer that
reads what head A wrote by its values moves x to x W_OV^A W_OV^B, as one head would whose pattern is the product of
theirs: a virtual head. A third head C may read that by its values too, or by its queries or keys, where the chain ends
in the score instead. The strength of a chain is

    |W_OV^A W_OV^B M|_F / (|W_OV^A| |W_OV^B| |M|),     M = W_OV^C, W_QK^C (q) or its transpose (k),

with the last factor left out for chains of two; random matrices of these shapes give the number to compare with. For
chains that end in values the result also has how much of the map copies, the sum of the real parts of the eigenvalues
over that of their sizes (of W_OV^A W_OV^B W_OV^C within the residual, -1 to 1). Cost: the weights, then products of
d_head x d and d_head x d_head for every chain, of which 100 heads in 10 layers have 120,000 of three: name heads.
Limits: what chains can carry; the patterns have to line up for them to do it, and MLPs and norms' scales are left
out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.weights.spaces import HeadWeights, weights_of
from interp.hooks.errors import InputsError
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Series
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class VirtualHeads(Saved):
    """Chains of heads, the strongest first."""

    STEM = "virtual_heads"

    chains: tuple[tuple[str, ...], ...]
    """The heads of each chain, the earliest layer first."""
    side: str
    """How the last head reads: "v", "q" or "k"."""
    strength: Tensor
    """[chain]: 0 to 1, the largest first."""
    baseline: float
    """The mean strength of chains of random matrices of the same shapes."""
    copying: Tensor
    """[chain]: how much of the chain's map copies what it reads, -1 to 1; NaN where the last head reads by queries or
    keys."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row a chain."""
        import pandas

        rows = [
            {"chain": " > ".join(chain), "side": self.side, "strength": float(s), "baseline": self.baseline,
             "copying": float(c)} for chain, s, c in zip(self.chains, self.strength, self.copying, strict=True)
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=["chain", "side", "strength", "baseline", "copying"])

    def _figure(self) -> Figure:
        """The strengths as bars, with random matrices."""
        names = [" > ".join(chain) for chain in self.chains]
        series = [Series("chain", self.strength.tolist()), Series("random matrices", [self.baseline] * len(names))]
        return Figure([Bars(names, series, y="strength of the chain")])

    def __repr__(self) -> str:
        best = f"{' > '.join(self.chains[0])} {float(self.strength[0]):.3f}" if self.chains else "none"
        return f"VirtualHeads ({self.side}) of {len(self.chains)} chains, random {self.baseline:.3f}: {best} first"


def virtual_heads(
    model: Model, heads: str = "L*", *, length: int = 3, side: str = "v", top: int = 20,
    draws: int = 20, seed: int = 0,
) -> VirtualHeads:  # fmt: skip
    """The `top` strongest chains of 2 or 3 of the heads that a pattern means, each in a later layer than the last."""
    if length not in (2, 3) or side not in ("v", "q", "k") or top < 1 or draws < 1:
        raise InputsError(
            f"expected length 2 or 3, side v, q or k, top and draws of 1 or more; got {length}, {side!r}, {top},"
            f" {draws}."
        )
    _, every = weights_of(model, heads)
    if len({one.layer for one in every}) < length:
        raise InputsError(f"a chain of {length} needs heads of {length} layers; {heads!r} has fewer.")
    found = sorted(_chains(every, length, side), key=lambda one: -one[0])
    best = [chain for _, chain in found[:top]]
    copying = [_copying(chain) if side == "v" else float("nan") for chain in best]
    meta = {**about(model.module, None), "method": "virtual heads", "chains": len(found), "seed": seed}
    return VirtualHeads(
        tuple(tuple(one.name for one in chain) for chain in best), side,
        torch.tensor([value for value, _ in found[:top]]).double(), _random(every[0].v.shape, length, draws, seed),
        torch.tensor(copying).double(), meta,
    )  # fmt: skip


Chain = tuple[HeadWeights, ...]


def _chains(every: list[HeadWeights], length: int, side: str) -> Iterator[tuple[float, Chain]]:
    """Every chain with its strength; those that differ in their last head alone are worked out together."""
    sizes = [_size(one.v.mT @ one.v, one.o @ one.o.mT) for one in every]
    for a, first in enumerate(every):
        gram = first.v.mT @ first.v
        if length == 2:
            yield from _ended((first,), gram, sizes[a], every, side)
            continue
        for b, second in enumerate(every):
            if second.layer > first.layer:
                between = first.o @ second.v
                yield from _ended((first, second), between.mT @ gram @ between, sizes[a] * sizes[b], every, side)


def _ended(
    early: Chain, gram: Tensor, size: float, every: list[HeadWeights], side: str
) -> Iterator[tuple[float, Chain]]:
    """The chain with each later head at its end; `gram` is that of the chain before the last write."""
    for last in (one for one in every if one.layer > early[-1].layer):
        left, right = _end(last, side)
        between = early[-1].o @ left
        made = _size(between.mT @ gram @ between, right @ right.mT)
        whole = size * _size(left.mT @ left, right @ right.mT)
        yield (made / whole if whole > 0 else 0.0), (*early, last)


def _end(last: HeadWeights, side: str) -> tuple[Tensor, Tensor]:
    """The last map as a product [d, d_head] [d_head, d]."""
    if side == "v":
        return last.v, last.o
    q, k = last.qk()
    return (q, k.mT) if side == "q" else (k, q.mT)


def _size(left: Tensor, right: Tensor) -> float:
    """|A B|_F from A^T A and B B^T."""
    return float((left * right.mT).sum().clamp(min=0).sqrt())


def _copying(chain: Chain) -> float:
    """Sum of Re(lambda) over the sum of |lambda|, of the small matrix that has the product's eigenvalues."""
    small = chain[0].o
    for one in chain[1:]:
        small = small @ one.v @ one.o
    values = torch.linalg.eigvals(small @ chain[0].v)
    total = float(values.abs().sum())
    return float(values.real.sum()) / total if total > 0 else 0.0


def _random(shape: torch.Size, length: int, draws: int, seed: int) -> float:
    """The mean strength of chains of random matrices."""
    random, (d, n) = torch.Generator().manual_seed(seed), shape

    def head(layer: int) -> HeadWeights:
        v, o = (torch.randn(*one, generator=random, dtype=torch.double) for one in ((d, n), (n, d)))
        return HeadWeights("random", layer, v, o, None, None)

    drawn = (_chains([head(layer) for layer in range(length)], length, "v") for _ in range(draws))
    return sum(value for found in drawn for value, _ in found) / draws


register(
    Method(
        "interp.heads.virtual_heads",
        number="strength of a chain of heads by their weights, 0 to 1, with that of random matrices",
        shown="table",
        papers=(),
        passes=lambda t: 4 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: virtual_heads(t.model, f"{t.tower}L*", length=2, draws=2),
    )
)
