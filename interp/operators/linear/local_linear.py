"""Local linear attention: each row fits a line through the values, weighed by softmax, and reads it at its query.

Softmax attention is the weighed mean of the values, which is a local constant fit; this is the local linear one
(arXiv 2510.01450). With w_j = exp(scale q.k_j) over the visible keys and x_j = k_j - q,

    omega = sum w_j,   mu = sum w_j x_j,   S = sum w_j x_j x_j^T + ridge omega I,   rho = S^-1 mu
    A_j = w_j (1 - x_j.rho) / (omega - mu.rho)

Weights sum to 1 and may be negative; a large ridge gives softmax attention, a small one reproduces values that are
linear in keys, v = M k + b, wherever there are more keys than dimensions. This closed form is that of local linear
regression; the authors' kernels are not published, and the ridge in units of omega is ours, so that it does not depend
on the size of scores. Scores are the model's, with its bias and soft cap; a learned sink is refused.
Cost: quadratic in length, and a system of the head's width for each row; memory linear in length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, blocks, pairs, ratio, softmax, softmax_products, visible, wide


@dataclass(frozen=True, eq=False, repr=False)
class LocalLinear(Operator):
    """Softmax attention that fits a line instead of a mean."""

    ridge: float = 1.0
    """Added to the diagonal of the weighed covariance of x; the larger, the nearer to softmax."""

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise EditError(
                f"{self!r}: ridge must be above 0: without it a row with as few keys as dimensions has no line."
            )

    def z(self, part: Part) -> Tensor:
        width = part.k.shape[2] + part.q.shape[-1] ** 2
        return torch.cat([part.read(self.weights(part, rows)) for rows in blocks(part, width)], 2)

    def products(self, part: Part) -> float:
        """Softmax attention, the squares of keys for each row, and a system for each row."""
        d = part.q.shape[-1]
        return softmax_products(part) + pairs(part) * d**2 + part.q.shape[2] * d**3 / 3

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        if part.sinks is not None:
            raise EditError(f"{self!r}: a learned sink has no key, and the line needs keys: use another layer.")
        seen = visible(part, rows)
        p = softmax(part.scores(rows), seen)
        q, k = wide(part.q[:, :, rows]).to(p), part.keys.to(p)
        mu = p @ k - q * p.sum(-1, keepdim=True)
        ridge = self.ridge * torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
        rho = torch.linalg.solve(self._covariance(p, q, k) + ridge, mu)
        a = p * (1 - (rho @ k.transpose(-1, -2) - (rho * q).sum(-1, keepdim=True)))
        return ratio(a, p.sum(-1, keepdim=True) - (mu * rho).sum(-1, keepdim=True))

    def _covariance(self, p: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """sum_j p_j x_j x_j^T [example, head, row, d, d]"""
        d = k.shape[-1]
        squares = (p @ (k[..., :, None] * k[..., None, :]).flatten(-2)).unflatten(-1, (d, d))
        cross = (p @ k)[..., :, None] * q[..., None, :]
        own = q[..., :, None] * q[..., None, :] * p.sum(-1)[..., None, None]
        return squares - cross - cross.transpose(-1, -2) + own
