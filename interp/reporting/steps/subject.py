"""What a report is about: a model, a task, and how much is asked of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from interp.provenance import about
from interp.reporting.steps.budget import Budget
from interp.reporting.steps.prompts import pool_of
from interp.reporting.steps.steps import Answer
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

SPLITS = {"heldout": "held-out prompts", "same rows": "the prompts they were found on"}
"""What the part is that findings are judged on."""

TOGETHER, FIXED = 0.5, 4.0
"""A sweep's tokens cost this part of a bare pass's, since many patches share a product; recording and checks."""


@dataclass(frozen=True)
class Wanted:
    """How much a report does; all of it is in its plan."""

    seed: int = 0
    top: int = 8
    """Heads that get a card, and that are patched exactly where the others are estimated."""
    exact: Literal["auto"] | bool = "auto"
    examples: int = 2
    """Prompts whose patterns are shown."""
    draws: int = 20
    """Sets of random heads to compare with every set of top heads."""
    random: int = 100
    """Random circuits to compare with the circuit."""
    circuit: bool = True
    prompts: Literal["auto", "all"] = "all"
    """As many of the drawn prompts as the intervals need, or all of them."""
    budget: float | int | str | None = None
    """Passes, or minutes as "10 min"; None for `interp.reporting.steps.budget.PASSES`, or more for a small model."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a task put on it."""

    model: Model
    name: str
    task: Task
    wanted: Wanted
    revision: str = ""
    budget: Budget = field(default_factory=Budget)
    judged: Task | None = None
    """The held-out prompts that were chosen."""
    enough: int = 1
    """How many of them, the first ones, have a gap that is distinguished from 0."""

    def on(self, chosen: Answer) -> Subject:
        """The same on the prompts that were chosen (`interp.reporting.steps.prompts.choose`)."""
        task, held = self.task.take(range(chosen["train"]["rows"])), chosen["heldout"]
        if not held["kept"]:
            judged = task
        else:
            judged = (pool_of(self.task, held["pool"]) if self.split == "heldout" else task).take(held["kept"])
        return replace(self, task=task, judged=judged, enough=held["enough"])

    @cached_property
    def heldout(self) -> Task:
        """Other names and templates where the task was generated, else the same rows; `split` says which."""
        if self.judged is not None:
            return self.judged
        return self.task.heldout if self.task.recipe is not None else self.task

    def amount(self, name: str, wanted: int) -> int:
        """How much of something is affordable."""
        return self.budget.amounts.get(name, wanted)

    @cached_property
    def multiplications(self) -> float:
        """Of one pass of all prompts: weights times tokens."""
        weights = sum(weight.numel() for weight in self.model.module.parameters())
        return float(weights) * self.task.clean.length * len(self.task)

    @cached_property
    def moved(self) -> float:
        """The share of positions that can differ between clean and corrupt: those from the first different token on."""
        clean, corrupt = (side.kwargs.get("input_ids") for side in (self.task.clean, self.task.corrupt))
        if clean is None or corrupt is None or clean.shape != corrupt.shape or "pixel_values" in self.task.clean.kwargs:
            return 1.0
        return float(((clean != corrupt).long().cumsum(1) > 0).double().mean())

    def sweep(self, tower: str) -> float:
        """Patching every head of a tower once, in passes: each from its own layer on, where something can differ."""
        layers = self.model.anatomy.towers[tower].layers
        above = sum(layer.heads * (len(layers) - n) / len(layers) for n, layer in enumerate(layers))
        return above * self.moved * TOGETHER + FIXED

    @property
    def split(self) -> str:
        """What the held-out part is."""
        return "heldout" if self.task.recipe is not None else "same rows"

    @cached_property
    def stacks(self) -> dict[str, str]:
        """Towers that have heads, and the start of their sites: "" where there is one tower."""
        towers = self.model.ready().towers
        return {name: "" if len(towers) == 1 else f"{name}." for name in towers}

    def heads(self, tower: str) -> str:
        """The site pattern of all heads of a tower."""
        return f"{self.stacks[tower]}L*.H*.z"

    @property
    def count(self) -> int:
        """How many heads there are."""
        return sum(layer.heads for tower in self.model.anatomy.towers.values() for layer in tower.layers)

    def plan(self) -> dict[str, Any]:
        """What makes this report this report, as plain values."""
        facts = about(self.model.module, self.task.clean)
        recipe = self.task.recipe
        options = None if recipe is None else {**recipe.options}
        reads = {"reads": list(self.task.reads)} if self.task.score == "similarity" else {}
        return {**facts, **reads, "model": self.name, "revision": self.revision, "task": self.task.name,
                "rows": len(self.task), "corrupt_hash": self.task.corrupt.digest(), "options": options,
                "score": self.task.score, **asdict(self.wanted)}  # fmt: skip


def revision_of(model: Model) -> str:
    """The commit it was loaded from, where the hub says so."""
    return str(getattr(model.config, "_commit_hash", None) or "")
