"""Relative scores: a learned vector for each distance adds to the score, in addition to the key.

Transformer-XL's decomposition (Dai et al. 2019, arXiv 1901.02860), which relative convolutional attention (RCMHA)
builds on: with r_n the vector of distance n = i - j, cut off at `reach`,

    s_ij = scale ((q_i + u).k_j + (q_i + w).r_(i-j))

The convolutions of q, k and v that RCMHA has before it are of the layer and not of a head, and are not here. The table
is given, [head, 2 reach + 1, d], from distance -reach on (later keys) to reach; zeros change nothing. What is added
comes after the model's soft cap, where it has one.
Cost: that of attention and of the table's products, in blocks of rows; memory linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, per_head, places, wide


@dataclass(frozen=True, eq=False, repr=False)
class RelativeScores(Operator):
    """Softmax attention with a vector for each distance."""

    ordered = True

    table: Tensor | None = None
    """[head, 2 reach + 1, d]: a vector for each distance, from -reach (later keys) to reach. It has to be given."""
    u: Tensor | None = None
    """[head, d], what every query adds when it meets a key."""
    w: Tensor | None = None
    """[head, d], the same when it meets a distance."""

    def __post_init__(self) -> None:
        if self.table is None or self.table.ndim != 3 or self.table.shape[1] % 2 == 0:
            came = None if self.table is None else list(self.table.shape)
            raise EditError(f"{self!r}: table is [head, 2 reach + 1, d], a vector for each distance, got {came}.")

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        assert self.table is not None
        q = wide(part.q[:, :, rows])
        table = per_head(self.table, part, "table=").to(q)
        if table.shape[-1] != q.shape[-1]:
            raise EditError(f"{self!r}: the table has width {table.shape[-1]}, and the heads have {q.shape[-1]}.")
        reach = table.shape[1] // 2
        asking = q if self.w is None else q + per_head(self.w, part, "w=").to(q)[:, None]
        along = asking @ table.transpose(-1, -2)
        apart = places(part)[rows][:, None] - torch.arange(part.k.shape[2], device=q.device)
        at = (apart.clamp(-reach, reach) + reach).expand(*along.shape[:2], -1, -1)
        added = along.gather(-1, at)
        if self.u is not None:
            added = added + (wide(part.keys) * per_head(self.u, part, "u=").to(q)[:, None]).sum(-1)[:, :, None]
        return part.softmax(part.scores(rows) + part.scale * added)
