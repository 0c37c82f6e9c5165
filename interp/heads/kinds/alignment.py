"""Kinds of cross-attention heads: those whose rows look at what their token is about, and those that only move on.

Aligned (own measure, on the two readings of Chen et al. 2020, arXiv 2004.14837): the mean weight that a token's row has
on the keys the token is about. A decoder has two rows a token: the one that predicts it and the one whose input it is,
a step later; Chen et al. find the alignment in the second, where the token is known. All weight counts, that on padding
too, and heads that look everywhere alike have the share of keys that a span has, which the result gives too. Monotone
(own definition): the rank correlation of the rows' order and of the real key with each row's largest weight: 1 where
later tokens look further on, -1 where they look further back, 0 where all look at one key. It needs no spans, and it
does not say that a head is aligned: a head that counts its own tokens moves on as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.heads.kinds.crossing import Crossing
from interp.heads.kinds.kind import Meter
from interp.hooks.errors import InputsError

PREDICTING, OWN = "predicting row", "own row"
AHEAD = {PREDICTING: 1, OWN: 0}
"""How many columns after a row its token is."""
LEAST = 3
"""Rows that an order needs."""


@dataclass(frozen=True)
class Aligned:
    """The weight on what a token is about."""

    row: str

    @property
    def name(self) -> str:
        return f"aligned ({self.row})"

    def refuses(self, page: Crossing) -> str | None:
        if not bool(page.wanted.any()):
            return "no spans= were given"
        lacking = (~_shifted(page.wanted.any(2), AHEAD[self.row]).any(1)).nonzero().flatten().tolist()
        return f"no token of example {lacking[0]} with a span has such a row" if lacking else None

    def meter(self, page: Crossing) -> Meter:
        return AlignedMeter(page, AHEAD[self.row])


class AlignedMeter:
    """Sums the weight on spans, and the rows whose largest weight is there."""

    def __init__(self, page: Crossing, ahead: int) -> None:
        self.page, self.wanted = page, _shifted(page.wanted, ahead)
        self.weight: Tensor | float = 0.0
        self.hits: Tensor | float = 0.0

    def take(self, at: Tensor, weights: Tensor) -> None:
        _fits(self.page, weights)
        wanted = self.wanted[:, at.cpu()]
        p = weights.double().cpu()
        best = torch.zeros_like(p).scatter_(3, p.argmax(-1, keepdim=True), 1.0)
        self.weight = self.weight + torch.einsum("bhrk,brk->hb", p, wanted.double())
        self.hits = self.hits + torch.einsum("bhrk,brk->hb", best, wanted.double())

    def result(self) -> tuple[Tensor, list[str]]:
        rows = self.wanted.any(2)
        share = (self.wanted.sum(2) / self.page.keys.sum(1)[:, None])[rows].mean()
        hits = torch.as_tensor(self.hits).sum(1) / rows.sum()
        said = [f"largest weight there in {hit:.0%} of rows, {share:.0%} expected of equal weights" for hit in hits]
        return torch.as_tensor(self.weight) / rows.sum(1).double(), said


@dataclass(frozen=True)
class Monotone:
    """How surely later tokens look further on."""

    row: str

    @property
    def name(self) -> str:
        return f"monotone ({self.row})"

    def refuses(self, page: Crossing) -> str | None:
        counts = _shifted(words(page), AHEAD[self.row]).sum(1).tolist()
        short = [n for n, count in enumerate(counts) if count < LEAST]
        return f"an order needs at least {LEAST} tokens of text, and example {short[0]} has fewer" if short else None

    def meter(self, page: Crossing) -> Meter:
        return MonotoneMeter(page, AHEAD[self.row])


class MonotoneMeter:
    """Keeps the real key with each row's largest weight."""

    def __init__(self, page: Crossing, ahead: int) -> None:
        self.page, self.rows = page, _shifted(words(page), ahead)
        self.at: list[Tensor] = []
        self.best: list[Tensor] = []

    def take(self, at: Tensor, weights: Tensor) -> None:
        _fits(self.page, weights)
        real = self.page.keys[:, None, None].to(weights.device)
        self.at.append(at.cpu())
        self.best.append(weights.masked_fill(~real, -1.0).argmax(-1).cpu())

    def result(self) -> tuple[Tensor, list[str]]:
        order, best = torch.cat(self.at), torch.cat(self.best, 2).double()
        found = torch.zeros(best.shape[1], len(best), dtype=torch.double)
        for row, counted in enumerate(self.rows[:, order]):
            found[:, row] = rank_correlation(order[counted].double(), best[row][:, counted])
        looked = best.masked_fill(~self.rows[:, None, order], torch.nan).transpose(0, 1).flatten(1)
        ends = [(int(one.nan_to_num(torch.inf).min()), int(one.nan_to_num(-1.0).max())) for one in looked]
        return found, [f"looks at {self.page.said(low)} to {self.page.said(high)}" for low, high in ends]


def words(page: Crossing) -> Tensor:
    """[example, column], the tokens that are text; all real ones where ids are not known."""
    known = page.words >= 0
    return known if bool(known.any()) else page.valid


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's of x [n] with each y [..., n], ties at their mean rank; 0 where y is constant."""
    a, b = (_ranks(one) - (one.shape[-1] - 1) / 2 for one in (x, y))
    spread = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(spread > 0, (a * b).sum(-1) / spread.clamp(min=1e-300), 0.0)


def _ranks(x: Tensor) -> Tensor:
    below = (x[..., None, :] < x[..., :, None]).sum(-1)
    return below + ((x[..., None, :] == x[..., :, None]).sum(-1) - 1).double() / 2


def _shifted(columns: Tensor, ahead: int) -> Tensor:
    """What is said of columns [example, column, ...], of the rows that are `ahead` columns before them."""
    if not ahead:
        return columns
    return torch.cat([columns[:, ahead:], torch.zeros_like(columns[:, :ahead])], 1)


def _fits(page: Crossing, weights: Tensor) -> None:
    if weights.shape[3] != page.keys.shape[1]:
        raise InputsError(
            f"this cross-attention has {weights.shape[3]} keys, and the tower it looks at has {page.keys.shape[1]}"
            " positions: the place of each key is not known here."
        )


CROSS_KINDS = (Aligned(PREDICTING), Aligned(OWN), Monotone(PREDICTING), Monotone(OWN))
