"""What a kind of head is: a definition that meters the weights of one layer, rows by rows, per head and example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.heads.kinds.page import Page
from interp.hooks.errors import InputsError
from interp.hooks.sites import nearest

Pairs = Callable[[Page, Tensor], Tensor]
"""Which keys a kind means [example, row, key], for some query columns [row]."""

CHUNK = 256
"""Rows whose keys are looked up together."""


@runtime_checkable
class Meter(Protocol):
    """One kind being measured on one layer."""

    def take(self, at: Tensor, weights: Tensor) -> None:
        """The weights [example, head, row, key] of the query columns `at`."""

    def result(self) -> tuple[Tensor, list[str]]:
        """Its value [head, example], and a word on each head where there is one to say (else empty)."""


@runtime_checkable
class Kind(Protocol):
    """A kind of head."""

    @property
    def name(self) -> str: ...

    def refuses(self, page: Page) -> str | None:
        """Why it has no meaning on these inputs, or None."""

    def meter(self, page: Page) -> Meter: ...


@dataclass(frozen=True)
class Relation:
    """A kind that is weight on certain keys, averaged over the rows that have such a key, or over the pairs."""

    name: str
    pairs: Pairs
    needs: Callable[[Page], str | None]
    per: Literal["row", "pair"] = "row"

    def refuses(self, page: Page) -> str | None:
        if why := self.needs(page):
            return why
        found = torch.zeros(len(page.valid), dtype=torch.bool)
        for at in torch.arange(page.length).split(CHUNK):
            found |= self.pairs(page, at).any(2).any(1)
        lacking = (~found).nonzero().flatten().tolist()
        return f"no row of example {lacking[0]} has a key for it to look at" if lacking else None

    def meter(self, page: Page) -> RelationMeter:
        return RelationMeter(self, page)


class RelationMeter:
    """Sums the weight on a relation."""

    def __init__(self, kind: Relation, page: Page) -> None:
        self.kind, self.page = kind, page
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def take(self, at: Tensor, weights: Tensor) -> None:
        pairs = self.kind.pairs(self.page, at.cpu())
        counted = pairs.sum((1, 2)) if self.kind.per == "pair" else pairs.any(2).sum(1)
        self.total = self.total + _on(pairs, weights)
        self.count = self.count + counted.double()

    def result(self) -> tuple[Tensor, list[str]]:
        return torch.as_tensor(self.total) / torch.as_tensor(self.count), []


def _on(pairs: Tensor, weights: Tensor) -> Tensor:
    """The weight [head, example] on pairs [example, row, key], of which there are few."""
    example, row, key = pairs.expand(len(weights), -1, -1).nonzero(as_tuple=True)
    found = weights.movedim(1, -1)[example.to(weights.device), row.to(weights.device), key.to(weights.device)]
    total = torch.zeros(len(weights), weights.shape[1], dtype=torch.double)
    return total.index_add_(0, example, found.double().cpu()).T


def text_only(page: Page) -> str | None:
    """Kinds about words mean nothing where the positions are patches."""
    return "it is about words, and this tower reads patches of pictures" if page.picture else None


def words_known(page: Page) -> str | None:
    """Kinds that compare words need them."""
    return text_only(page) or (None if bool((page.words >= 0).any()) else "the ids of this tower's words are not known")


def chosen(kinds: Any, known: Sequence[str]) -> list[str]:
    """Kinds that were asked for, each known."""
    asked = list(known) if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    for name in asked:
        if name not in known:
            raise InputsError(f"no kind of head {name!r}.{nearest(name, known)} There are {', '.join(known)}.")
    if not asked:
        raise InputsError(f"name at least one kind of head: {', '.join(known)}.")
    return asked
