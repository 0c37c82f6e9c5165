"""Kinds of heads that look for a token: the one before, itself, an earlier copy, what came after an earlier copy.

Olsson et al. 2022 (arXiv 2209.11895), appendix on head activation evaluators: previous token is the mean of A[i, i-1]
over text; prefix matching is the average of the pattern's entries from a token to those that followed the same token
earlier, over 25 random tokens said four times. As first printed the sentence says "preceded", which read literally
means the tokens before an earlier copy; both readings are here. Duplicate token and induction are the stripes of
TransformerLens' head detector and demos, here per row that has such a key, so that a head that always looks there has
1 however often the text repeats itself (the detector divides by all rows). In towers that look both ways a copy may
also occur later.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.kinds.kind import Relation, text_only, words_known
from interp.heads.kinds.page import Page


def previous(page: Page, at: Tensor) -> Tensor:
    """A[i, i - 1], both real."""
    return _offset(page, at, 1)


def itself(page: Page, at: Tensor) -> Tensor:
    """A[i, i]."""
    return _offset(page, at, 0)


def duplicate(page: Page, at: Tensor) -> Tensor:
    """Another copy of the same word."""
    return _same(page, at, page.words) & _others(page, at)


def following(page: Page, at: Tensor) -> Tensor:
    """The word after another copy of the same word."""
    before = torch.nn.functional.pad(page.words, (1, 0), value=-1)[:, :-1]
    copy_is_other = torch.arange(page.length)[None, None] != at[None, :, None] + 1
    return _same(page, at, before) & _seen(page, at) & copy_is_other


def preceding(page: Page, at: Tensor) -> Tensor:
    """The word before another copy of the same word."""
    after = torch.nn.functional.pad(page.words, (0, 1), value=-1)[:, 1:]
    j = torch.arange(page.length)[None, None]
    own = j + 1 >= at[None, :, None] if page.causal else j + 1 == at[None, :, None]
    return _same(page, at, after) & _seen(page, at) & ~own


def _offset(page: Page, at: Tensor, back: int) -> Tensor:
    j = torch.arange(page.length)
    hit = j[None, None] == at[None, :, None] - back
    return hit & page.valid[:, at, None] & page.valid[:, None]


def _same(page: Page, at: Tensor, keys: Tensor) -> Tensor:
    rows = page.words[:, at, None]
    return (rows >= 0) & (rows == keys[:, None]) & page.valid[:, None]


def _seen(page: Page, at: Tensor) -> Tensor:
    if not page.causal:
        return torch.ones(1, len(at), page.length, dtype=torch.bool)
    return (torch.arange(page.length)[None] <= at[:, None])[None]


def _others(page: Page, at: Tensor) -> Tensor:
    j = torch.arange(page.length)[None]
    return (j < at[:, None] if page.causal else j != at[:, None])[None]


PREVIOUS = Relation("previous token", previous, text_only)
SELF = Relation("self", itself, lambda page: None)
DUPLICATE = Relation("duplicate token", duplicate, words_known)
INDUCTION = Relation("induction", following, words_known)
PREFIX = Relation("prefix matching", following, words_known, per="pair")
PREFIX_LITERAL = Relation("prefix matching (preceding)", preceding, words_known, per="pair")
