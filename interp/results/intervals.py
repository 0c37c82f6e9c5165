"""Drawing examples again: weights for every draw, intervals, ranks, and how far two rankings agree.

A draw takes groups (templates) with replacement, then rows within each group taken, so that what rows share beyond
chance is drawn again as well. Without groups each row is one of its own, which is the plain bootstrap. An interval is
the middle 95% of the draws; of a single example (or seed, or draw) there is none: both ends are NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(groups: tuple[str, ...], *, draws: int, seed: int) -> Tensor:
    """[draw, row], each draw's rows as shares that sum to 1."""
    random = torch.Generator().manual_seed(seed)
    members = [torch.tensor([n for n, g in enumerate(groups) if g == name]) for name in dict.fromkeys(groups)]
    if len(members) in (1, len(groups)):
        picks = torch.randint(len(groups), (draws, len(groups)), generator=random)
        return _counts(picks, len(groups)) / len(groups)
    taken = _counts(torch.randint(len(members), (draws, len(members)), generator=random), len(members))
    total = torch.zeros(draws, len(groups), dtype=torch.float64)
    for n, mine in enumerate(members):
        for time in range(int(taken[:, n].max())):
            picks = mine[torch.randint(len(mine), (draws, len(mine)), generator=random)]
            total += _counts(picks, len(groups)) * (taken[:, n] > time)[:, None]
    return total / total.sum(1, keepdim=True)


def apart(count: int) -> tuple[str, ...]:
    """Groups of rows that share nothing: each its own."""
    return tuple(map(str, range(count)))


def _counts(picks: Tensor, of: int) -> Tensor:
    found = torch.zeros(len(picks), of, dtype=torch.float64)
    return found.scatter_add_(1, picks, torch.ones(picks.shape, dtype=torch.float64))


def interval(values: Tensor, level: float = 0.95, *, n: int | Tensor) -> tuple[Tensor, Tensor]:
    """The middle `level` of the draws [draw, ...], draws that are not defined left out; `n` is how many examples were
    drawn from, one number or one an entry."""
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    several = torch.as_tensor(n) > 1
    low, high = (torch.where(several, end, torch.nan) for end in torch.nanquantile(values, bounds, dim=0))
    return low, high


def mean_interval(
    values: Tensor, level: float = 0.95, *, draws: int = 1000, seed: int = 0, groups: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Bootstrap interval of each row's mean over examples [row, example]."""
    count = values.shape[1]
    drawn = weights(groups or apart(count), draws=draws, seed=seed)
    return interval(drawn @ values.double().T, level, n=count)


def spanned(low: float, high: float, spec: str = "+.3g") -> str:
    """An interval in words, " [+0.1, +0.2]"; nothing where there is none."""
    return f" [{low:{spec}}, {high:{spec}}]" if low == low and high == high else ""


def ranks(values: Tensor) -> Tensor:
    """1 for the largest, along the last axis; ties share their middle."""
    import pandas

    flat = values.reshape(-1, values.shape[-1])
    found = pandas.DataFrame(flat.numpy()).rank(axis=1, ascending=False, method="average").to_numpy(copy=True)
    return torch.from_numpy(found).reshape(values.shape)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, along the last axis; NaN where one side does not vary."""
    x, y = (one - one.mean(-1, keepdim=True) for one in (x, y))
    size = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(size > 0, (x * y).sum(-1) / size, torch.nan)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of ranks along the last axis; NaN where one side is all ties."""
    return correlation(ranks(a), ranks(b))


def membership(values: Tensor, k: int) -> Tensor:
    """Each one's chance to be among the k largest, with ties across the border broken at random."""
    border = values.topk(k, dim=-1).values[..., -1:]
    above, tied = values > border, values == border
    share = (k - above.sum(-1, keepdim=True)) / tied.sum(-1, keepdim=True)
    return torch.where(above, 1.0, torch.where(tied, share.double(), 0.0)).double()


def overlap(a: Tensor, b: Tensor, k: int) -> Tensor:
    """The share of the k largest that two sides have in common, ties broken at random and independently."""
    return (membership(a, k) * membership(b, k)).sum(-1) / k
