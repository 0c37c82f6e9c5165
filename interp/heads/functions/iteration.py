"""Iteration heads: in a chain of thought, the row that writes its t-th step looks at the t-th word of the input.

Cabannes et al. 2024 (arXiv 2406.02128). A step is made of the one before and of the input word of the same number, so
the head that fetches it moves on by one word a step. The value is the mean weight that the row before step t, which
says it, gives to input word t. Tasks say where both are: `positions` with "input" and "chain", spans of as many tokens.
Limits: a head that always looks as far back does the same where the distance never changes; give inputs of several
lengths to tell them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.functions.asked import FunctionGround, Numbers
from interp.heads.kinds.kind import Relation
from interp.heads.kinds.page import Page
from interp.heads.kinds.reading import measured

NAME = "iteration"
FETCHES = "weight on the step's own input"
INPUT, CHAIN = "input", "chain"


def refuses(asked: FunctionGround) -> str | None:
    """It needs to know where input and chain are."""
    if asked.task is None or not all({INPUT, CHAIN} <= set(row.positions) for row in asked.task.rows):
        return 'the task does not say where its "input" and its "chain" are'
    uneven = [n for n, (a, b) in enumerate(_spans(asked)) if a[1] - a[0] != b[1] - b[0] or b[0] < 1]
    return f"input and chain of example {uneven[0]} are not equally long" if uneven else None


def measure(asked: FunctionGround) -> Numbers:
    """The mean weight over steps."""
    wanted = torch.zeros(asked.x.batch, asked.page.length, asked.page.length, dtype=torch.bool)
    for row, (given, chain) in enumerate(_spans(asked)):
        steps = torch.arange(given[1] - given[0])
        wanted[row, chain[0] - 1 + steps, given[0] + steps] = True

    def pairs(page: Page, at: Tensor) -> Tensor:
        return wanted[:, at]

    kind = Relation(FETCHES, pairs, lambda page: None, per="pair")
    values, _ = measured(asked.model, asked.sites, asked.x, asked.page, [kind])
    return {FETCHES: values[FETCHES].double()}


def _spans(asked: FunctionGround) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    assert asked.task is not None
    places = asked.task.positions
    both = zip(places[INPUT].rows, places[CHAIN].rows, strict=True)
    return [(a or (0, 0), b or (0, 0)) for a, b in both]
