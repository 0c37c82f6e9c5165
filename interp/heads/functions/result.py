"""Which head does what for a task: the numbers of its kinds, and the kinds they make it.

A label is a convention, said here once: a head is called a mover where the last row gives the answer at least `LOOKS`
of its weight and adds at least `WRITES` to the answer's logit, over the whole interval of the mean more than 0; a
negative head where it gives one word as much and takes as much off it; an S-inhibition head where it gives the repeated
wrong answer as much and the movers' queries lose at least `LOSES` of the task without it, over the whole interval more
than 0; a successor head where at least `MOST` of the words are succeeded; an iteration head where each step gets at
least `MOST` of its row's weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.heads.functions import inhibition, iteration, movers, negative, successor
from interp.results.figures.figure import Figure
from interp.results.figures.plots import scaled
from interp.results.roles import HeadRoles

LOOKS, WRITES, LOSES, MOST = 0.1, 0.5, 0.05, 0.5


@dataclass(frozen=True, eq=False)
class HeadFunctions(HeadRoles):
    """`values[number]` [head, example]; `labels()` are the kinds."""

    STEM = "functions"

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The heads that are of some kind, and of which."""
        kind = f"{self.meta.get('answers', 'word')} mover"
        found: dict[str, list[str]] = {}
        for name, sure in (
            (kind, self._least(movers.LOOKS, LOOKS) & self._sure(movers.WRITES, WRITES)),
            ("negative", self._least(negative.LOOKS, LOOKS) & self._sure(negative.LOWERS, WRITES)),
            ("S-inhibition", self._least(inhibition.LOOKS, LOOKS) & self._sure(inhibition.KEEPS, LOSES)),
            ("successor", self._least(successor.SUCCEEDS, MOST)),
            ("iteration", self._least(iteration.FETCHES, MOST)),
        ):  # fmt: skip
            for n in sure.nonzero().flatten().tolist():
                found.setdefault(self.sites[n], []).append(name)
        return {site: tuple(names) for site, names in found.items()}

    def _least(self, number: str, least: float) -> Tensor:
        """Whether the mean is so large; where it was not measured, no."""
        if number not in self.values:
            return torch.zeros(len(self.sites), dtype=torch.bool)
        return self.of(number) >= least

    def _sure(self, number: str, least: float) -> Tensor:
        """The same, and more than 0 over its whole interval."""
        large = self._least(number, least)
        return large & (self.interval(number)[0] > 0) if number in self.values else large

    def table(self) -> Any:
        """Heads by numbers, with the kinds they are."""
        known = self.labels()
        return super().table().assign(label=[", ".join(known.get(site, ())) for site in self.sites])

    def _figure(self, *args: Any, **which: Any) -> Figure:
        """The map of heads by numbers, each number within its own range."""
        table = super().table()
        return Figure(
            [scaled(table.values.T, list(table.columns), list(table.index), per="column", x="number", y="head")]
        )

    def __repr__(self) -> str:
        said = "; ".join(f"{site} {', '.join(names)}" for site, names in self.labels().items())
        return f"HeadFunctions of {len(self.sites)} heads in {len(self.values)} numbers: {said or 'none of a kind'}"
