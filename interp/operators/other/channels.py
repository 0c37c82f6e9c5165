"""Attention between channels: each channel of the output is a mean of the value's channels, over all tokens at once.

    z_ic = sum_c' A_cc' v_ic',     A = softmax over c' of (scale sum_i q_ic k_ic')

as DaViT has it (Ding et al. 2022, arXiv 2204.03645; by its formula: its code multiplies keys by values there). With
`temperature`, the columns of q and k are first divided by their lengths over the tokens, and what is in the softmax by
the temperature instead of the scale: XCiT (El-Nouby et al. 2021, arXiv 2106.09681). No token looks at another, so that
there is no pattern of tokens. Channels are those of one head as the model has them.
Cost: linear in length in time and memory. All rows have to see the same keys. Not while generating: the products are
over queries that are not in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, real_queries, wide


@dataclass(frozen=True, eq=False, repr=False)
class Channels(Operator):
    """Attention between the channels of a head."""

    whole = True
    scoreless = True
    fast = True

    temperature: float | None = None
    """What the products are divided by, above 0, after q and k are made of length 1; None for the model's scale."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise EditError(f"{self!r}: temperature is above 0.")

    def z(self, part: Part) -> Tensor:
        weights = self.channels(part)
        return wide(part.values) @ weights.transpose(-1, -2)

    def pattern(self, part: Part) -> None:
        """None: no token looks at another."""

    def products(self, part: Part) -> float:
        """Each token into the weights of channels, and these against each token."""
        return float(part.q.shape[2]) * part.q.shape[-1] * (part.q.shape[-1] + part.v.shape[-1])

    def channels(self, part: Part) -> Tensor:
        """A [example, head, channel of z, channel of v]."""
        self.refuse_additions(part)
        queries, keys, d, dv = part.q.shape[2], part.k.shape[2], part.q.shape[-1], part.v.shape[-1]
        if queries != keys or d != dv:
            raise EditError(
                f"{self!r}: channels of q, k and v are compared token by token, and here are {queries} queries and"
                f" {keys} keys of width {d}, and values of width {dv}."
            )
        known = self.same_keys(part)[..., None]
        q, k = wide(part.q) * real_queries(part)[..., None], wide(part.keys) * known
        if self.temperature is None:
            return torch.softmax(q.transpose(-1, -2) @ k * part.scale, -1)
        q, k = (torch.nn.functional.normalize(x, dim=2) for x in (q, k))
        return torch.softmax(q.transpose(-1, -2) @ k / self.temperature, -1)
