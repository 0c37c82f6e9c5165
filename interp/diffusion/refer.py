"""Where is what an expression refers to? Maps of its words without those of words that draw what belongs nowhere.

RefAM (arXiv 2509.22650): stop words and words added for the purpose (attention magnets: ".", "a", "with") take up
attention that has nowhere to go; their maps are dropped, and so are those of words that have become global sinks, and
the rest is one map of the expression, whose highest cell is where it points. The paper says neither how a sink is told
nor how maps are averaged. Here a word is a sink where its mean weight is above `high` times the median word's and its
map is even, with a standard deviation below `even` of its mean; the rest are averaged after each is divided by its own
mean. These are ours. Cost: only that of the maps. Limits: with two words no sink can be found, since a median needs
more words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.diffusion.denoiser import NOT_HERE
from interp.diffusion.maps import Maps, maps
from interp.hooks.errors import InputsError
from interp.records import Method, register

STOP = frozenset(". , a an the with of to in on at by and or is".split())
"""Words that refer to nothing."""


@dataclass(frozen=True, eq=False)
class Referred:
    """The map of an expression, and which words are in it."""

    map: Tensor
    """[example, frame, row, column]; 1 is the mean of a word's map."""
    kept: tuple[str, ...]
    """The words whose maps are averaged in `map`."""
    dropped: tuple[str, ...]
    """Magnets and stop words."""
    sinks: tuple[str, ...]
    """Words that were left out since they have a large and even weight over the whole picture."""

    @property
    def point(self) -> Tensor:
        """[example, 3]: frame, row and column of the highest cell."""
        rows, columns = self.map.shape[2:]
        at = self.map.flatten(1).argmax(1)
        return torch.stack([at // (rows * columns), at // columns % rows, at % columns], 1)


def refer(
    found: Maps, *, magnets: Collection[str] = (), high: float = 3.0, even: float = 0.2, place: str | None = None
) -> Referred:
    """One map of all words that say something, at a place (`"L3.H1"`) or over all groups."""
    every = {word: found.of(word, place=place) for word in found.words}
    dropped = tuple(word for word in found.words if word in magnets or word.strip().lower() in STOP)
    if unknown := [word for word in magnets if word not in found.words]:
        raise InputsError(f"there is no map of the magnet {unknown[0]!r}; there are {', '.join(found.words)}.")
    middle = torch.stack([one.mean() for one in every.values()]).quantile(0.5)
    sinks = tuple(
        word
        for word, one in every.items()
        if word not in dropped and one.mean() > high * middle and one.std() < even * one.mean()
    )
    kept = tuple(word for word in found.words if word not in (*dropped, *sinks))
    if not kept:
        raise InputsError(
            f"no word is left that can refer to something: {', '.join(dropped) or 'none'} are magnets or stop words,"
            f" {', '.join(sinks) or 'none'} are sinks."
        )
    alike = [every[word] / every[word].mean((1, 2, 3), keepdim=True).clamp(min=1e-30) for word in kept]
    return Referred(torch.stack(alike).mean(0), kept, dropped, sinks)


def pointing(point: Tensor, boxes: Sequence[Sequence[float | int]], *, grid: tuple[int, int]) -> Tensor:
    """[example]: whether the middle of the cell that was pointed at is in the example's box, (left, top, right,
    bottom) as fractions of the picture."""
    if len(boxes) != len(point) or any(len(box) != 4 for box in boxes):
        raise InputsError(f"expected one box of four numbers for each of {len(point)} examples, got {len(boxes)}.")
    rows, columns = grid
    y, x = (point[:, 1] + 0.5) / rows, (point[:, 2] + 0.5) / columns
    left, top, right, bottom = torch.tensor(boxes, dtype=torch.float32).unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _example(t: Any, **how: Any) -> Referred:
    return refer(maps(t.model, lambda: t.model.run(t.base), words={"word": [0]}), **how)


register(
    Method(
        name="interp.diffusion.refer",
        number="weight of a cell in the maps of an expression's words, over the mean weight",
        example=_example,
        passes=lambda t: 1,
        shown="none",
        values=None,
        signed=False,
        made_of=("interp.diffusion.maps",),
        unfit=NOT_HERE,
    )
)
