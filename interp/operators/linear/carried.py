"""Sums that go on key by key while a model generates: the state of linear attention, in a size that does not grow.

    S_t = e^-rate S_{t-1} + g(k_t) u_t^T,      y_t = f(q_t) S_t

Where features are exponentials, S is in units of the largest exponent so far, and what is in it is scaled when a key
with a larger one comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.operators.common.operator import alive
from interp.operators.linear.features import MapPair
from interp.operators.linear.streams import Stream, shared


@dataclass(frozen=True)
class Sums:
    """sum_j d(t, j) g(k_j) u_j^T of the keys up to t, times e^-top."""

    numbers: Tensor
    """[example, kv head or head, feature, dv]"""
    top: Tensor | None
    """[example, kv head, 1, 1]"""

    def faded(self, rate: Tensor | None) -> Sums:
        """One position later; rate is [head], and so is what decays."""
        if rate is None:
            return self
        return Sums(self.numbers * torch.exp(-rate)[:, None, None], self.top)

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        if self.top is None or other.top is None:
            return Sums(self.numbers + other.numbers, None)
        top = torch.maximum(self.top, other.top)
        first, second = (_of_heads(torch.exp(one - top), self.numbers) for one in (self.top, other.top))
        return Sums(first * self.numbers + second * other.numbers, top)

    def read(self, features: Tensor) -> Tensor:
        """y [example, head, query, dv] of features of queries."""
        return shared(features, self.numbers)


def gathered(part: Part, maps: MapPair, u: Tensor, *, rate: Tensor | None = None) -> Sums:
    """The sum over those keys of a part that some query sees, as it is at the last key."""
    stream = Stream(part, maps.q, maps.k, u, rate)
    stream.dead = ~alive(part)
    keys = part.k.shape[2]
    return Sums(stream.sum_of(0, keys, keys - 1), maps.top)


def _of_heads(top: Tensor, like: Tensor) -> Tensor:
    """An exponent of kv heads for sums of heads."""
    return top.repeat_interleave(like.shape[1] // top.shape[1], 1)
