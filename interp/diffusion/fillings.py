"""Which masked positions a step of unmasking fills, with which words.

Of the logits l at a masked position come chances p = softmax(l / temperature), the mask's own word left out, cut to the
fewest words whose chances reach `top_p`; the word is the likeliest at temperature 0 and else drawn from p. How sure the
model is of a position, by which positions are taken (`by`):

    confidence    p(word), at temperature 1 where p is not cut: low-confidence remasking (LLaDA, arXiv 2502.09992)
    margin        p(likeliest) - p(next)
    entropy       sum_w p(w) log p(w)                                         as Dream does (arXiv 2508.15487)
    random        a number drawn

Blocks are those of semi-autoregressive sampling: the b-th `block` masked positions of a row, filled before the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.hooks.errors import InputsError

By = Literal["confidence", "margin", "entropy", "random"]


@dataclass(frozen=True)
class Rule:
    """How positions and words are chosen."""

    by: By = "confidence"
    temperature: float = 0.0
    top_p: float | None = None
    block: int | None = None
    shift: bool = False
    """Whether the logits at a position are of the next one, as in models that were made from causal ones."""

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise InputsError(f"by= is one of {', '.join(get_args(By))}, got {self.by!r}.")
        if self.temperature < 0 or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise InputsError(
                f"temperature= is at least 0 and top_p= in (0, 1], got {self.temperature} and {self.top_p}."
            )
        if self.block is not None and self.block < 1:
            raise InputsError(f"block= is at least one position, got {self.block}.")

    def blocks(self, open_: Tensor, steps: int) -> Tensor:
        """[row, position], the block of each masked position, -1 for the rest; refused where steps do not go round."""
        order = open_.long().cumsum(1) - 1
        found = torch.where(open_, order // (self.block or open_.shape[1]), -1)
        count = int(found.max()) + 1
        if steps % count:
            raise InputsError(
                f"{count} blocks of {self.block} positions are filled in equally many steps each, and steps={steps} is"
                f" no multiple of {count}."
            )
        return found

    def words(self, logits: Tensor, token: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The word at each position, its chance, and how sure the model is of the position."""
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1) if self.shift else logits
        logits = logits.float().index_fill(-1, torch.tensor([token], device=logits.device), -torch.inf)
        plain = logits.softmax(-1)
        chances = self._cut((logits / self.temperature).softmax(-1) if self.temperature else plain)
        if self.temperature:
            drawn = torch.multinomial(chances.flatten(0, 1).cpu(), 1, generator=random)
            word = drawn.view(chances.shape[:2]).to(chances.device)
        else:
            word = chances.argmax(-1)
        own = (plain if self.top_p is None else chances).gather(-1, word[..., None])[..., 0]
        return word, own, self._sure(chances, own, random)

    def _cut(self, chances: Tensor) -> Tensor:
        """The fewest words whose chances reach `top_p`, as chances again."""
        if self.top_p is None:
            return chances
        ordered, at = chances.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)  # the first is always kept
        kept = torch.zeros_like(chances).scatter(-1, at, ordered)
        return kept / kept.sum(-1, keepdim=True)

    def _sure(self, chances: Tensor, own: Tensor, random: torch.Generator) -> Tensor:
        if self.by == "confidence":
            return own
        if self.by == "margin":
            first, second = chances.topk(2, -1).values.unbind(-1)
            return first - second
        if self.by == "entropy":
            return torch.special.xlogy(chances, chances).sum(-1)
        return torch.rand(own.shape, generator=random).to(own.device)
