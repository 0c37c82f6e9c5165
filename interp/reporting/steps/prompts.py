"""Which prompts a report uses: as many as its intervals need, and held-out ones that the model answers right.

Of generated prompts that nobody counted (`prompts="auto"`) as many are taken as bring the standard error of the gap
between clean and corrupt to `NEAR` of it, from `START` on; a small model takes them all. What was found is judged on
held-out prompts: they are tried until as many are answered right, those alone are kept, and how many were tried is
said, since a model that guesses leaves a gap near zero to divide by. Where too few are right, or their gap is not
distinguished from 0, nothing is judged there, and `why` says so. Cost: a pass on each side of the prompts that are
looked at. Limits: a task that was not generated here has no held-out part, and is judged on the prompts it was found
on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from interp.metrics.edited import scored
from interp.reporting.steps.gathered import FEW
from interp.reporting.steps.steps import Answer
from interp.results.intervals import apart, interval, weights
from interp.tasks.task import Task

START, ROUND, STEP = 16, 8, 4
NEAR = 0.15
POOL = 64
"""Held-out prompts that may be tried, where fewer were drawn and too few of them are answered right."""
BATCH = 32
ALIKE = 1e-6


@dataclass
class Sides:
    """Per prompt: whether the answer is right, and the metric of clean and corrupt."""

    right: list[bool] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    corrupt: list[float] = field(default_factory=list)

    def look(self, task: Task, upto: int) -> None:
        """Run the prompts that were not looked at, up to a number."""
        while (start := len(self.right)) < min(upto, len(task)):
            part = task.take(range(start, min(start + BATCH, upto, len(task))))
            host: Any = part.model
            if part.score == "similarity":
                self.right += part.right()
                self.clean += scored(host, part.clean, part.metric).tolist()
                self.corrupt += scored(host, part.corrupt, part.metric).tolist()
                continue
            logits = host.run(part.clean)["logits"]
            self.right += part.right_in(logits)
            self.clean += part.metric(logits, part.clean).double().tolist()
            self.corrupt += part.metric(host.run(part.corrupt)["logits"], part.corrupt).double().tolist()

    def numbers(self, task: Task, rows: Sequence[int]) -> dict[str, Any]:
        """Of some rows: the means, the gap and its interval over templates, then prompts."""
        clean, corrupt = (torch.tensor([side[n] for n in rows]).double() for side in (self.clean, self.corrupt))
        low, high = gap_interval(clean - corrupt, groups_of(task, rows))
        return {
            "rows": len(rows), "accuracy": sum(self.right[n] for n in rows) / max(1, len(rows)),
            "clean": float(clean.mean()), "corrupt": float(corrupt.mean()), "gap": float((clean - corrupt).mean()),
            "low": low, "high": high,
        }  # fmt: skip


def groups_of(task: Task, rows: Sequence[int]) -> tuple[str, ...]:
    """What prompts share beyond chance: their template, where the task says so."""
    return tuple(str(task.meta[n].get("template", n)) for n in rows)


def gap_interval(gaps: torch.Tensor, groups: tuple[str, ...]) -> tuple[float | None, float | None]:
    """Of a mean over prompts; nothing for a single one."""
    if len(gaps) < 2:
        return None, None
    drawn = weights(groups or apart(len(gaps)), draws=1000, seed=0)
    low, high = interval(drawn @ gaps, n=len(gaps))
    return float(low), float(high)


def told_apart(numbers: Answer) -> bool:
    """Whether the gap is there: beyond rounding, and with an interval that leaves 0 out where there is one."""
    if not abs(numbers["gap"]) > ALIKE:
        return False
    return numbers["low"] is None or not numbers["low"] <= 0 <= numbers["high"]


def choose(task: Task, *, auto: bool) -> Answer:
    """The rows of both splits with their numbers, as plain values."""
    seen, split = Sides(), "heldout" if task.recipe is not None else "same rows"
    seen.look(task, START if auto else len(task))
    count = _enough(seen, len(task)) if auto else len(task)
    seen.look(task, count)
    train = seen.numbers(task, range(count))
    answer: Answer = {"drawn": len(task), "train": train, "split": split}
    if split != "heldout":
        return {**answer, "heldout": {**train, "tried": count, "pool": len(task), "kept": [*range(count)],
                                      "why": _why(train, count, least=1), "enough": 1}}  # fmt: skip
    return {**answer, "heldout": _held_out(task, max(count, FEW))}


def _enough(seen: Sides, most: int) -> int:
    """How many prompts bring the standard error of the gap near enough."""
    gaps = torch.tensor(seen.clean).double() - torch.tensor(seen.corrupt).double()
    if len(gaps) < 2 or not abs(float(gaps.mean())) > ALIKE:
        return most
    needed = (float(gaps.std()) / (NEAR * abs(float(gaps.mean())))) ** 2
    return min(most, max(START, math.ceil(min(needed, most) / ROUND) * ROUND))


def pool_of(task: Task, count: int) -> Task:
    """The held-out prompts, at least so many."""
    recipe = task.recipe
    assert recipe is not None
    if "n" not in recipe.options or recipe.options["n"] >= count:
        return task.heldout
    return replace(task, recipe=replace(recipe, options={**recipe.options, "n": count})).heldout


def _held_out(task: Task, wanted: int) -> Answer:
    """As many prompts that are answered right, looked for `wanted` at a time."""
    seen, pool = Sides(), task.heldout
    kept = _right(seen, pool, wanted)
    if len(kept) < wanted and len(pool) < POOL:
        seen, pool = Sides(), pool_of(task, POOL)
        kept = _right(seen, pool, wanted)
    tried = len(seen.right)
    numbers = seen.numbers(pool, kept) if kept else {"rows": 0, "gap": 0.0, "low": None, "high": None}
    accuracy = sum(seen.right) / max(1, tried)
    return {**numbers, "accuracy": accuracy, "tried": tried, "pool": len(pool), "kept": kept,
            "why": _why(numbers, tried, least=FEW), "enough": _fewest(seen, pool, kept)}  # fmt: skip


def _fewest(seen: Sides, pool: Task, kept: Sequence[int]) -> int:
    """How many of them already have a gap that is distinguished from 0, and at every larger number as well."""
    for count in range(len(kept), 0, -STEP):
        if count < FEW or not told_apart(seen.numbers(pool, kept[:count])):
            return min(len(kept), count + STEP)
    return len(kept)


def _right(seen: Sides, pool: Task, wanted: int) -> list[int]:
    while len(seen.right) < len(pool) and sum(seen.right) < wanted:
        seen.look(pool, len(seen.right) + wanted)
    return [n for n, right in enumerate(seen.right) if right][:wanted]


def _why(numbers: Answer, tried: int, *, least: int) -> str:
    """Why nothing can be judged on these prompts; nothing where it can."""
    if numbers["rows"] < least:
        return f"the model answers {numbers['rows']} of {tried} held-out prompts right, fewer than {least}"
    if told_apart(numbers):
        return ""
    span = "" if numbers["low"] is None else f" [{numbers['low']:+.3g}, {numbers['high']:+.3g}]"
    return (
        f"clean and corrupt differ by {numbers['gap']:+.3g}{span} on these prompts, which cannot be distinguished from"
        " 0"
    )
