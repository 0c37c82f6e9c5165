"""Agent attention: a few agents read all keys, and every row reads the agents.

Han et al. 2024 (arXiv 2312.08874): agents a_t are means of the queries over n runs of rows, or over n cells of a grid,

    A_it = softmax_t(scale q_i.a_t),   B_tj = softmax_j(scale a_t.k_j),   z = A B v,   pattern A B

The paper's block has learned biases in both softmaxes and a convolution of v in addition, which are not part of a
trained head and are not here. Runs are of the rows that are no padding. An agent reads rows after its own, so that a
tower which hides later keys has no such attention and is refused.
Cost: linear in length in time and memory, n times the width of a head. Not while generating: queries before the
current one are not in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, ratio, real_queries, rows_asked, softmax, visible, wide


@dataclass(frozen=True, eq=False, repr=False)
class Agent(Operator):
    """Attention through `count` agents; with `grid`, through means over `count` x `count` cells of it."""

    whole = True
    scoreless = True
    fast = True

    count: int = 16
    """How many agents; with `grid`, how many along each side of it."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens, in row-major order; tokens before them (a class token) have no part in agents."""

    def __post_init__(self) -> None:
        if self.count < 1 or (self.grid is not None and self.count > min(self.grid)):
            raise EditError(f"{self!r}: count is at least 1, and at most the grid's side.")

    def z(self, part: Part) -> Tensor:
        agents, known = self._agents(part)
        return self._of_agents(part, agents, rows_all(part)) @ (self._keys(part, agents, known) @ wide(part.values))

    def pattern(self, part: Part) -> Tensor:
        """Weights; rows sum to 1."""
        agents, known = self._agents(part)
        return self._of_agents(part, agents, rows_asked(part)) @ self._keys(part, agents, known)

    def products(self, part: Part) -> float:
        """Agents against all keys and rows against all agents."""
        count = self.count if self.grid is None else self.count**2
        return float(part.q.shape[2] + part.k.shape[2]) * count * (part.q.shape[-1] + part.v.shape[-1])

    def _agents(self, part: Part) -> tuple[Tensor, Tensor]:
        """[example, head, agent, d], and the keys that agents see, Bool [example or 1, head or 1, key]."""
        self.refuse_additions(part)
        share = self._shares(part)
        return share @ wide(part.q), self.same_keys(part)

    def _shares(self, part: Part) -> Tensor:
        """[example or 1, head or 1, agent, query]: which mean of queries each agent is."""
        real = real_queries(part).to(wide(part.q))
        queries = part.q.shape[2]
        if self.grid is None:
            total = real.sum(-1, keepdim=True)
            run = ((real.cumsum(-1) - 1) * self.count / total.clamp(min=1)).floor().clamp(max=self.count - 1)
        else:
            rows, columns = self.grid
            before = queries - rows * columns
            if before < 0:
                raise EditError(f"{self!r}: a grid of {rows * columns} tokens, and the call has {queries}.")
            at = torch.arange(rows * columns, device=real.device)
            cell = (at // columns * self.count // rows) * self.count + at % columns * self.count // columns
            run = torch.nn.functional.pad(cell, (before, 0), value=-1).expand_as(real)
        numbers = torch.arange(self.count if self.grid is None else self.count**2, device=real.device)
        own = (run[:, :, None] == numbers[:, None]) * real[:, :, None]
        return ratio(own, own.sum(-1, keepdim=True))

    def _of_agents(self, part: Part, agents: Tensor, rows: Tensor) -> Tensor:
        """[example, head, row, agent]; runs without a row have no agent."""
        there = self._shares(part).sum(-1)[:, :, None] > 0
        s = wide(part.q[:, :, rows]) @ agents.transpose(-1, -2) * part.scale
        sighted = visible(part, rows).any(-1, keepdim=True)
        return softmax(s, there & sighted)

    def _keys(self, part: Part, agents: Tensor, known: Tensor) -> Tensor:
        """[example, head, agent, key]"""
        return softmax(agents @ wide(part.keys).transpose(-1, -2) * part.scale, known[:, :, None])


def rows_all(part: Part) -> Tensor:
    """The numbers of all queries."""
    return torch.arange(part.q.shape[2], device=part.q.device)
