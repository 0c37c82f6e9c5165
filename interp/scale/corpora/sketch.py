"""Quantiles in fixed memory, with a bound on the error that holds for any data and any order.

DDSketch (Masson, Rim and Lee 2019, arXiv 1908.10693): a number x is counted in bin ceil(log_g |x|), one row of bins
for each sign and one bin for 0, with g = (1 + a) / (1 - a). The quantile that is read from the counts is within a |x|
of one of the data; counts of shards add up exactly. Here a = 0.01 and bins cover 1e-9 to 1e9; what is smaller counts as
0, what is larger as the largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ERROR = 0.01
GROWTH = (1 + ERROR) / (1 - ERROR)
LEAST, MOST = 1e-9, 1e9
REACH = math.ceil(math.log(MOST) / math.log(GROWTH))
SIDE = 2 * REACH + 1
BINS = 2 * SIDE + 1
"""Negative numbers from the largest magnitude to the least, 0, positive ones from the least."""


def bins(x: Tensor) -> Tensor:
    """The bin of each number."""
    size = x.abs().double()
    step = (size.clamp(LEAST, MOST).log() / math.log(GROWTH)).ceil().long().clamp(-REACH, REACH) + REACH + 1
    return SIDE + torch.where(size < LEAST, 0, torch.where(x < 0, -step, step))


def counted(x: Tensor, there: Tensor) -> Tensor:
    """[n, label] numbers, of which only some are there, as counts [label, bin]."""
    found = torch.zeros(x.shape[1], BINS, dtype=torch.long)
    return found.scatter_add_(1, bins(x).T, there.long().T.contiguous())


def quantile(counts: Tensor, share: float) -> Tensor:
    """[label]: the number below which that share of the counted ones is; NaN where nothing was counted."""
    total = counts.sum(1)
    rank = (share * (total - 1).clamp(min=0)).floor().long()
    at = (counts.cumsum(1) <= rank[:, None]).sum(1).clamp(max=BINS - 1) - SIDE
    size = 2 * GROWTH ** (at.abs().double() - REACH - 1) / (GROWTH + 1)
    return torch.where(total > 0, at.sign().double() * size, torch.nan)
