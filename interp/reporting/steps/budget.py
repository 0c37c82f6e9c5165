"""What a report may take, in forward passes of its prompts, and what each part of it gets.

A pass is one bare forward of all prompts that heads are scored on. Before any work every section says what it would
like and gets the whole of it, as much as is affordable, or nothing, in their order; what was cut is said on the page.
The plan depends on shapes and on the number of passes alone, so a report that goes on plans the same again. Minutes are
turned into passes by a probe once, which is written down and kept.
A budget that is not said is `PASSES`, or for small models what `FREE` multiplications make: they get all they ask for.
Cost: none. Limits: what is planned is counted from shapes and is no measurement; `run.json` has what it took.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from interp.kernels.errors import InterpError

Number = float | int
PASSES = 250
FREE = 3e12
"""Multiplications that a report may take whatever they are in passes: a minute or so of two cores."""
MINUTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:m|min|minutes?)\s*", re.IGNORECASE)


@dataclass
class Budget:
    """Passes, and who gets them."""

    total: Number = math.inf
    amounts: dict[str, int] = field(default_factory=dict)
    """How much of something that comes in pieces is affordable; what is not named here is as it was asked for."""
    planned: dict[str, Number] = field(default_factory=dict)
    """Passes by what they are for."""
    left_out: list[str] = field(default_factory=list)
    working: list[str] = field(default_factory=list)
    """Sections that got something."""

    @property
    def spent(self) -> Number:
        """Passes that were given out."""
        return sum(self.planned.values())

    @property
    def left(self) -> Number:
        """Passes that were not."""
        return max(0.0, self.total - self.spent)

    def must(self, name: str, passes: Number) -> None:
        """Something without which there is no report."""
        self.planned[name] = self.planned.get(name, 0.0) + passes

    def whole(self, name: str, passes: Number, said: str, *, share: Number = 1.0, step: str = "") -> bool:
        """Something that is done or not, if it takes no more than a share of what is left; `step` is where it is done,
        if that is named otherwise."""
        fits = passes <= share * self.left
        self.amounts[name] = int(fits)
        if fits:
            self.must(step or name, passes)
        else:
            self.left_out.append(f"{said} would take about {passes:,.0f} passes; {self._there()}.")
        return fits

    def some(
        self, name: str, each: Number, wanted: int, said: str, *, base: Number = 0.0, least: int = 1,
        share: Number = 1.0, step: str = "", had: int = 0,
    ) -> int:  # fmt: skip
        """As many of something as a share of what is left allows, up to those wanted; fewer than `least` are none.
        `had` of them were given already, with something else."""
        room = share * self.left - base
        count = wanted if wanted * each <= room else max(0, int(room / each))
        count = 0 if count < min(least, wanted) else count
        self.amounts[name] = had + count
        if count:
            self.must(step or name, base + count * each)
        if count < wanted:
            self.left_out.append(f"{said}: {had + count} of {had + wanted}; all would take about"
                                 f" {base + (had + wanted) * each:,.0f} passes, {self._there()}.")  # fmt: skip
        return count

    def _there(self) -> str:
        return f"the budget is {self.total:,.0f}"


def asked(budget: float | int | str | None) -> tuple[float | None, float | None]:
    """Passes and minutes of what was asked for, one of them or neither."""
    if budget is None:
        return None, None
    found = MINUTES.fullmatch(budget) if isinstance(budget, str) else None
    if found is not None:
        return None, float(found[1])
    try:
        passes = float(budget)
    except ValueError:
        passes = math.nan
    if not 1 <= passes < math.inf:
        raise InterpError(f"budget= is a number of forward passes, 1 or more, or minutes as '10 min', got {budget!r}.")
    return passes, None


def granted(multiplications: Number) -> float:
    """The budget of a report whose one pass takes so many multiplications, where none was said."""
    return max(float(PASSES), float(round(FREE / max(1.0, multiplications))))
