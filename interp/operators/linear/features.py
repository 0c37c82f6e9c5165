"""Feature maps of linear attention: what takes the place of exp(scale q.k) is phi(q).phi(k).

    elu       elu(x) + 1                               Katharopoulos et al. 2020, arXiv 2006.16236
    relu      max(x, 0)
    silu      x sigmoid(x), signed                     as Lightning attention has it, arXiv 2405.17381
    identity  x, signed
    exp       exp(x sqrt(scale))
    taylor    1, x sqrt(scale), all products of two of them: phi(q).phi(k) = 1 + s + s^2 / 2 with s = scale q.k
    random    exp(w.x - |x|^2 / 2) / sqrt(m), w in blocks of orthogonal rows: E phi(q).phi(k) = exp(s)
              (Performer, Choromanski et al. 2021, arXiv 2009.14794)
    hedgehog  softmax(W x), softmax(-W x), W learned for each head, its own for queries and for keys
              (Zhang et al. 2024, arXiv 2402.04347)

x is q or k as the call has it, after rotations and norms. Where a map has exponentials, the largest exponent is taken
off: for a query, and for all keys of a head, where it cancels in the normalised weights; without a normaliser such maps
are computed as they are. The model's soft cap on scores, where it has one, is part of what is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import per_head, wide

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MapAsked:
    """What an operator says of its feature map."""

    name: str
    count: int = 256
    """Random features."""
    seed: int = 0
    maps: Tensor | None = None
    """[2, head, feature, d]: W of queries and of keys, for hedgehog."""
    stable: bool = True
    """Whether factors that normalising takes out may be left out."""


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1."""
    return torch.nn.functional.elu(x) + 1


@dataclass(frozen=True)
class MapPair:
    """The maps of queries and of keys, [example, head, position, d] to [example, head, position, feature]."""

    q: Map
    k: Map
    top: Tensor | None = None
    """[example, kv head, 1, 1], the exponent that was taken off the features of all keys; None where none was."""


def _twins(one: Map) -> Callable[[Part, MapAsked], MapPair]:
    return lambda part, asked: MapPair(one, one)


def _exp(part: Part, asked: MapAsked) -> MapPair:
    root = _root(part)
    top = _top(wide(part.k) * root) if asked.stable else None
    return MapPair(lambda q: torch.exp(_lowered(q * root, asked)), lambda k: torch.exp(_less(k * root, top)), top)


def _taylor(part: Part, asked: MapAsked) -> MapPair:
    root = _root(part)
    first, second = torch.triu_indices(part.q.shape[-1], part.q.shape[-1], device=part.q.device)
    factor = torch.where(first == second, 0.5, 1.0).to(wide(part.q)).sqrt()

    def products(x: Tensor) -> Tensor:
        x = x * root
        return torch.cat([torch.ones_like(x[..., :1]), x, x[..., first] * x[..., second] * factor], -1)

    return MapPair(products, products)


def _random(part: Part, asked: MapAsked) -> MapPair:
    root = _root(part)
    w = orthogonal(asked.count, part.q.shape[-1], asked.seed).to(wide(part.q))

    def exponent(x: Tensor) -> Tensor:
        x = x * root
        return x @ w.T - x.square().sum(-1, keepdim=True) / 2

    top = _top(exponent(wide(part.k))) if asked.stable else None
    each = asked.count**-0.5
    return MapPair(
        lambda q: torch.exp(_lowered(exponent(q), asked)) * each,
        lambda k: torch.exp(_less(exponent(k), top)) * each,
        top,
    )


def _hedgehog(part: Part, asked: MapAsked) -> MapPair:
    maps = asked.maps
    if maps is None or maps.ndim != 4 or maps.shape[0] != 2 or maps.shape[-1] != part.q.shape[-1]:
        came = None if maps is None else list(maps.shape)
        raise EditError(
            f"feature='hedgehog' needs maps=[2, head, feature, {part.q.shape[-1]}], W of queries and of keys, got"
            f" {came}: fit them with interp.operators.mimic(...)."
        )
    wq, wk = (per_head(one, part, "maps=").to(wide(part.q)) for one in maps)

    def both(x: Tensor, w: Tensor) -> Tensor:
        if x.shape[1] != w.shape[0]:
            x = x.repeat_interleave(w.shape[0] // x.shape[1], 1)
        y = x @ w.transpose(-1, -2)
        return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1)

    return MapPair(lambda q: both(q, wq), lambda k: both(k, wk))


FEATURES: dict[str, Callable[[Part, MapAsked], MapPair]] = {
    "elu": _twins(elu),
    "relu": _twins(torch.relu),
    "silu": _twins(torch.nn.functional.silu),
    "identity": _twins(lambda x: x),
    "exp": _exp,
    "taylor": _taylor,
    "random": _random,
    "hedgehog": _hedgehog,
}
SIGNED = ("silu", "identity")


def features(part: Part, asked: MapAsked) -> MapPair:
    """The maps of a call."""
    return FEATURES[asked.name](part, asked)


def orthogonal(count: int, d: int, seed: int) -> Tensor:
    """[count, d]: Gaussian directions, orthogonal in blocks of d, with the norms of independent Gaussian vectors."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(math.ceil(count / d)):
        square, upper = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64))
        square = square * upper.diagonal().sign()
        norms = torch.randn(d, d, generator=random, dtype=torch.float64).norm(dim=1)
        found.append(square.T * norms[:, None])
    return torch.cat(found)[:count]


def _root(part: Part) -> float:
    return math.sqrt(part.scale)


def _lowered(x: Tensor, asked: MapAsked) -> Tensor:
    return x - x.detach().amax(-1, keepdim=True) if asked.stable else x


def _less(x: Tensor, top: Tensor | None) -> Tensor:
    return x if top is None else x - top


def _top(x: Tensor) -> Tensor:
    """The largest exponent of a head's keys."""
    return x.detach().amax((-1, -2), keepdim=True)
