"""Memory tokens: keys and values in addition to those of the text, which every row sees.

As persistent memory has them (Sukhbaatar et al. 2019, arXiv 1907.01470; Titans, arXiv 2501.00663): the softmax is over
the memory's scores scale q_i.m_t and the model's own together,

    z_i = (sum_t e^(scale q_i.m_t) u_t + sum_j e^(s_ij) v_j) / (sum_t e^(scale q_i.m_t) + sum_j e^(s_ij))

They have no position and are not rotated. The pattern is of the text's keys, so that a row sums to 1 less the memory's
share. Rows that see no key, as padding does, stay 0. Cost: that of attention and of n more keys; memory linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, blocks, per_head, wide


@dataclass(frozen=True, eq=False, repr=False)
class MemoryTokens(Operator):
    """Every row sees n more keys."""

    keys: Tensor | None = None
    """[head, n, d]: the keys in addition to those of the text. They have to be given."""
    values: Tensor | None = None
    """[head, n, dv]: the values of these keys. They have to be given."""

    def __post_init__(self) -> None:
        shapes = [None if x is None else list(x.shape) for x in (self.keys, self.values)]
        if self.keys is None or self.values is None or any(x.ndim != 3 for x in (self.keys, self.values)):
            raise EditError(f"{self!r} needs keys [head, n, d] and values [head, n, dv], got {shapes}.")
        if self.keys.shape[:2] != self.values.shape[:2]:
            raise EditError(f"{self!r}: as many keys as values, got {shapes}.")

    def z(self, part: Part) -> Tensor:
        found = []
        for rows in blocks(part):
            memory, text = self._both(part, rows)
            assert self.values is not None
            values = per_head(self.values, part, "values=").to(memory)
            found.append(memory @ values + part.read(text))
        return torch.cat(found, 2)

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        return self._both(part, rows)[1]

    def _both(self, part: Part, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The memory's weights [example, head, row, n] and the text's [example, head, row, key]."""
        assert self.keys is not None
        s = part.scores(rows)
        own = wide(part.q[:, :, rows]) @ per_head(self.keys, part, "keys=").to(s).transpose(-1, -2) * part.scale
        blind = s.isneginf().all(-1, keepdim=True)
        p = part.softmax(torch.cat([own.to(s), s], -1)).masked_fill(blind, 0.0)
        return p[..., : own.shape[-1]], p[..., own.shape[-1] :]
