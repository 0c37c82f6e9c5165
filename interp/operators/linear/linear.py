"""Linear attention: products of features in the place of the exponential, summed once for all rows.

    z_i = sum_j d_ij phi(q_i).phi(k_j) v_j / sum_j d_ij phi(q_i).phi(k_j),      d_ij = exp(-rate |i - j|) or 1

over the keys j that row i sees (Katharopoulos et al. 2020, arXiv 2006.16236); the maps are in `features`. With a rate
and without the normaliser it is Lightning attention (Qin et al. 2024, arXiv 2405.17381), whose rates `slopes` gives;
that paper's norm and gate after the heads are part of its model and not of a head, and are not here. With two
directions of decay, in a tower that looks ahead, it is ours.

Cost: linear in length in time and memory, quadratic in the head's width for `taylor`. While generating, the sum over
keys is a state (`carried`): a step adds one key to it and reads no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, alive, per_head, places, ratio, rows_asked, shares, visible, wide
from interp.operators.linear.carried import Sums, gathered
from interp.operators.linear.features import FEATURES, SIGNED, MapAsked, MapPair, features
from interp.operators.linear.streams import summed


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Operator):
    """Linear attention by a feature map, with decay where `rate` says so: `Linear("L5.H*", "elu")`."""

    scoreless = True
    fast = True

    feature: str = "elu"
    """elu, relu, silu, identity, exp, taylor, random or hedgehog."""
    rate: float | Tensor | None = None
    """Decay per position: one number, or [head]."""
    normalize: bool = True
    """Whether the weights of a row are divided by their sum."""
    maps: Tensor | None = None
    """[2, head, feature, d], for hedgehog: W of queries and of keys."""
    count: int = 256
    """How many random features."""
    seed: int = 0
    """The seed of random features."""

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise EditError(f"{self!r}: feature is one of {', '.join(FEATURES)}.")
        if self.normalize and self.feature in SIGNED:
            raise EditError(
                f"{self!r}: {self.feature} is signed, so the sum of a row can be near 0 and its weights very large:"
                " pass normalize=False, as Lightning attention does."
            )
        if self.count < 1 or (self.rate is not None and bool((torch.as_tensor(self.rate) < 0).any())):
            raise EditError(f"{self!r}: count is at least 1 and rate at least 0.")

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Decay counts positions."""
        return self.rate is not None

    def z(self, part: Part) -> Tensor:
        self.refuse_additions(part)
        maps = self._maps(part)
        return self._read(summed(part, maps.q, maps.k, self._told(part), rate=self._rates(part)))

    def start(self, part: Part) -> Sums:
        """The state of the keys that a query sees."""
        self.refuse_additions(part)
        return gathered(part, self._maps(part), self._told(part), rate=self._rates(part))

    def grow(self, state: Sums, part: Part) -> Sums:
        """The state with one more key."""
        return state.faded(self._rates(part)).plus(self.start(part))

    def answer(self, state: Sums, part: Part) -> Tensor:
        """z of a query, from the state alone."""
        return self._read(state.read(self._maps(part).q(wide(part.q))))

    def pattern(self, part: Part) -> Tensor:
        """Weights; rows sum to 1 where they are normalised."""
        self.refuse_additions(part)
        rows = rows_asked(part)
        maps = self._maps(part)
        a = _products(maps.q(wide(part.q[:, :, rows])), maps.k(wide(part.k)))
        rates = self._rates(part)
        if rates is not None:
            apart = (places(part)[rows][:, None] - torch.arange(part.k.shape[2], device=a.device)).abs()
            a = a * torch.exp(-rates[:, None, None] * apart)
        seen = visible(part, rows)
        return shares(a, seen) if self.normalize else a.masked_fill(~seen, 0.0)

    def state(self, part: Part) -> Tensor:
        """What all rows read where they see all keys, sum_j g(k_j) v_j^T [example, head, feature, dv]."""
        k, v = self._maps(part).k(wide(part.k)), wide(part.values)
        k = k.repeat_interleave(v.shape[1] // k.shape[1], 1) * alive(part)[..., None]
        return k.transpose(-1, -2) @ v

    def products(self, part: Part) -> float:
        """Each key into the sum and each query against it."""
        few = replace(part, k=part.k[:, :, :1], v=part.v[:, :, :1])
        count = self._maps(few).k(wide(few.k)).shape[-1]
        return float(part.q.shape[2] + part.k.shape[2]) * count * (part.v.shape[-1] + self.normalize)

    def _maps(self, part: Part) -> MapPair:
        return features(part, MapAsked(self.feature, self.count, self.seed, self.maps, stable=self.normalize))

    def _told(self, part: Part) -> Tensor:
        """What a key is summed with: its value, and 1 where rows are normalised."""
        v = wide(part.v)
        return torch.cat([v, torch.ones_like(v[..., :1])], -1) if self.normalize else v

    def _read(self, y: Tensor) -> Tensor:
        return ratio(y[..., :-1], y[..., -1:]) if self.normalize else y

    def _rates(self, part: Part) -> Tensor | None:
        if self.rate is None:
            return None
        return per_head(torch.as_tensor(self.rate, dtype=wide(part.q).dtype).flatten(), part, "rate=")


def slopes(heads: int, *, layer: int = 0, layers: int = 1) -> Tensor:
    """[head], Lightning attention's rates: geometric from head to head, as ALiBi has its slopes, and smaller from layer
    to layer down to none: times 1 - layer / (layers - 1) + 1e-5."""
    if not (heads >= 1 and 0 <= layer < layers):
        raise EditError(f"slopes are of at least one head and a layer below {layers}, got {heads} and {layer}.")
    power = 2 ** math.floor(math.log2(heads))
    found = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    found += [2 ** (-4 * (n + 1) / power) for n in range(0, 2 * power, 2)][: heads - power]
    return torch.tensor(found) * (1 - layer / max(1, layers - 1) + 1e-5)


def _products(fq: Tensor, gk: Tensor) -> Tensor:
    """[example, head, row, key] of features that heads of a group may share."""
    return fq @ gk.repeat_interleave(fq.shape[1] // gk.shape[1], 1).transpose(-1, -2)
