"""A few directions of a dictionary that many vectors have in common: matching pursuit, and a basis of text.

Simultaneous orthogonal matching pursuit takes at each step the direction whose inner products with what is left are
largest in sum of sizes over all vectors, then fits all chosen ones anew by least squares. The text basis (TextSpan)
takes the direction along which the vectors vary most, and takes it out of vectors and directions alike."""

from __future__ import annotations

import torch
from torch import Tensor

AT_A_TIME = 2**26
"""Inner products that are there together."""


def pursued(vectors: Tensor, directions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The chosen directions [count] of unit length [word, d], and what is left of the vectors [n, d] after each
    [count, n, d]."""
    left, chosen, kept = vectors, torch.zeros(0, dtype=torch.long), []
    for _ in range(count):
        score = _sums(directions, left)
        score[chosen] = -1.0
        chosen = torch.cat([chosen, score.argmax()[None]])
        held = torch.linalg.qr(directions[chosen].double().mT).Q
        left = vectors - vectors @ held @ held.mT
        kept.append(left)
    return chosen, torch.stack(kept)


def _sums(directions: Tensor, left: Tensor) -> Tensor:
    """sum over vectors of |<direction, vector>|, a few directions at a time."""
    some = directions.split(max(1, AT_A_TIME // max(1, len(left))))
    return torch.cat([(part.to(left.dtype) @ left.mT).abs().sum(1) for part in some])


def spanned(vectors: Tensor, directions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same by TextSpan: directions within the vectors' space, the largest variance first."""
    _, sizes, vt = torch.linalg.svd(vectors, full_matrices=False)
    space = vt[sizes > 1e-9 * float(sizes[0])] if len(sizes) and float(sizes[0]) > 0 else vt[:0]
    texts, left = directions.double() @ space.mT @ space, vectors
    chosen: list[int] = []
    kept: list[Tensor] = []
    for _ in range(count):
        size = texts.norm(dim=1)
        spread = (left @ texts.mT).var(0, unbiased=False)
        spread[size <= 1e-9 * float(size.max().clamp(min=1e-300))] = -1.0
        spread[torch.tensor(chosen, dtype=torch.long)] = -2.0
        best = int(spread.argmax())
        chosen.append(best)
        one = texts[best] / size[best].clamp(min=1e-300)
        left = left - (left @ one)[:, None] * one
        texts = texts - (texts @ one)[:, None] * one
        kept.append(left)
    return torch.tensor(chosen), torch.stack(kept)
