"""One tower's positions as the definitions of head kinds read them: which are words, delimiters, patches."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.inputs.inputs import Inputs

MARKERS = "Ġ▁Ċ "


@dataclass(frozen=True, eq=False)
class Page:
    """Labels of the positions of one tower, each [example, position]."""

    valid: Tensor
    words: Tensor
    """Ids, -1 where a position is no word: padding, pictures, special tokens."""
    delimiter: Tensor
    """Punctuation and special tokens, the opening one left out."""
    cells: Tensor
    """[example, position, (picture, frame, row, column)], -1 where a position is no patch."""
    cls: Tensor
    causal: bool
    picture: bool
    """Whether the tower reads patches."""

    @property
    def length(self) -> int:
        """Columns."""
        return self.valid.shape[1]

    @property
    def first(self) -> Tensor:
        """The column of each example's first real token."""
        return self.valid.int().argmax(1)

    @property
    def patch(self) -> Tensor:
        """Positions that are patches."""
        return self.cells[..., 2] >= 0

    @classmethod
    def of(cls, x: Inputs, *, causal: bool, picture: bool) -> Page:
        """The page of a tower's inputs."""
        roles, valid = x.roles, x.valid.cpu()
        word = roles.where("text").cpu() & valid
        ids = torch.full(valid.shape, -1) if x.ids is None else x.ids.cpu().long()
        marks = (
            torch.zeros_like(valid) if x.tokens is None else torch.tensor([list(map(_mark, row)) for row in x.tokens])
        )
        special = (roles.where("special") & ~roles.separator).cpu()
        cells = torch.stack([roles.tile, roles.frame, roles.row, roles.col], -1).cpu()
        delimiter = (marks & word) | (special & valid)
        cells = cells if picture else torch.full_like(cells, -1)
        return cls(valid, ids.where(word, -1), delimiter, cells, roles.where("cls").cpu() & valid, causal, picture)


def _mark(token: str) -> bool:
    """Whether a token is punctuation and nothing else."""
    bare = token.strip(MARKERS)
    return bool(bare) and all(unicodedata.category(c)[0] in "PS" for c in bare)
