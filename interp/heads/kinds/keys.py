"""Kinds of heads whose rows all look at the same keys: delimiters, or one token that everybody reads.

Delimiter: Clark et al. 2019 (arXiv 1906.04341) report heads of BERT that look at [SEP], full stops and commas; the
value is the mean weight on punctuation and special tokens, the opening token left out (resting there is a sink).
Broadcast (own definition): in a text, the largest mean weight that one key gets from the rows after it that see it,
the first token left out for the same reason, keys with fewer than `LEAST` such rows too; in a picture tower with a
class token, the mean weight that patches give it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.heads.kinds.kind import Meter, Relation, RelationMeter, text_only
from interp.heads.kinds.page import Page

LEAST = 8


def delimiters(page: Page, at: Tensor) -> Tensor:
    """Punctuation and special tokens that the row sees."""
    seen = torch.arange(page.length)[None] <= at[:, None] if page.causal else torch.ones(len(at), page.length).bool()
    return page.delimiter[:, None] & seen[None] & page.valid[:, at, None]


def class_token(page: Page, at: Tensor) -> Tensor:
    """The class token, for patches."""
    return page.cls[:, None] & page.patch[:, at, None]


@dataclass(frozen=True)
class Broadcast:
    """One token that the others look at."""

    name: str = "broadcast"

    def refuses(self, page: Page) -> str | None:
        if page.picture:
            return None if bool(page.cls.any(1).all()) else "this tower has no class token"
        return (
            None
            if bool((page.valid.sum(1) > LEAST + 1).all())
            else f"it needs more than {LEAST + 1} tokens in every example"
        )

    def meter(self, page: Page) -> Meter:
        return RelationMeter(_CLASS, page) if page.picture else BroadcastMeter(page)


class BroadcastMeter:
    """Sums what each key receives from rows other than its own."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.received: Tensor | float = 0.0

    def take(self, at: Tensor, weights: Tensor) -> None:
        rows = self.page.valid[:, at.cpu()].to(weights)
        got = torch.einsum("bhrk,br->bhk", weights, rows).double().cpu()
        own = weights[:, :, torch.arange(len(at)), at].double().cpu() * rows.double().cpu()[:, None]
        got[:, :, at.cpu()] -= own
        self.received = self.received + got

    def result(self) -> tuple[Tensor, list[str]]:
        page = self.page
        real = page.valid.double()
        seen = real.flip(1).cumsum(1).flip(1) - real if page.causal else real.sum(1, keepdim=True) - real
        counted = page.valid & (seen >= LEAST)
        counted[torch.arange(len(counted)), page.first] = False
        mean = torch.as_tensor(self.received) / seen.clamp(min=1)[:, None]
        return mean.where(counted[:, None], 0.0).amax(2).T, []


_CLASS = Relation("broadcast", class_token, lambda page: None)
BROADCAST = Broadcast()
DELIMITER = Relation("delimiter", delimiters, text_only)
