"""Is a circuit real? Everything that is asked before believing one, in one call and one table.

    faithful     f on prompts it was not found on, completeness and minimality (`interp.faithfulness`)
    stability    the same search on halves of the prompts and on single templates: overlap and rank correlation
    new prompts  the same search with other names and templates
    robustness   f on prompts with a token changed, with typos, and in other words (`paraphrases=`)
    transfer     f on other tasks (`others=`), and whether a search there finds the same edges
    ablation     f and error when what is outside is resampled, mean, zero, or a learned constant (2409.09951)
    chance       tests against random circuits, Holm over all of them (after 2410.13032)

A line `holds` where the number is on the right side of a convention, which is written in `why` or here: |1 - f| and the
gap of completeness at most 0.2, a Jaccard of 0.5, p at most 0.05. The search is `find(task) -> Edges`, EAP-IG from
corrupt into clean unless said, cut to as many edges as the circuit has. Cost: a search per split (two, and one for each
other task), `2 random + 20 parts` passes and `ablation_steps` soft ones. Limits: conventions are conventions; a circuit
that passes does what the model does on these prompts, by these interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from interp.circuits.edges import edges
from interp.circuits.faithfulness import faithfulness
from interp.circuits.found.circuit import Circuit
from interp.circuits.found.edge_scores import Edges
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Ablation
from interp.circuits.judged import Faithfulness
from interp.circuits.real.chance import chance
from interp.circuits.real.ground import Ground
from interp.circuits.real.optimal import Constants
from interp.circuits.real.robustness import misspelt, tokens_changed
from interp.circuits.real.stability import elsewhere, stability
from interp.circuits.real.verdict import Line, Verdict
from interp.hooks.errors import InputsError
from interp.kernels.errors import InterpError
from interp.provenance import about
from interp.records import Method, register
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

NEAR = 0.2
"""How far f may be from 1, and completeness from 0."""
FEW = 10
"""Prompts below which a learned constant may hold the answer."""
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")


@torch.enable_grad()
def judge(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    find: Callable[[Task], Edges] | None = None,
    judged_on: Task | None = None,
    paraphrases: Task | None = None,
    others: Mapping[str, Task] | None = None,
    random: int = 100,
    parts: int = 10,
    halves: int = 5,
    ablation_steps: int = 20,
    seed: int = 0,
) -> Verdict:
    """The verdict on a circuit that was found on `task`. It is judged on `judged_on`, the task's held-out part unless
    said."""
    if circuit.level != "edge" or not len(circuit):
        raise InputsError("a circuit of edges is judged, with at least one of them; got " + repr(circuit))
    found = _Judging(model, circuit, task.on(model) if task.model is None else task, find, seed)
    held = found.held(judged_on)
    lines = [
        *found.faithful(held, random, parts), *found.stable(halves), *found.new(held), *found.robust(paraphrases),
        *found.transfer(others or {}), *found.ablated(held, ablation_steps),
        *chance(Ground(_pair(model, held)), circuit, draws=random, parts=parts, seed=seed),
    ]  # fmt: skip
    meta = {**about(model.module, held.clean), "task": task.name, "edges": len(circuit), "seed": seed,
            "circuit": dict(circuit.meta)}  # fmt: skip
    return Verdict(tuple(lines), meta)


def _pair(model: Model, task: Task) -> GraphPair:
    return GraphPair(model, task.clean, task.corrupt, task.metric)


def _noised(model: Model, task: Task) -> Edges:
    return edges(model, base=task.clean, source=task.corrupt, metric=task.metric, steps=5)


class _Judging:
    """One circuit and what is asked of it."""

    def __init__(
        self, model: Model, circuit: Circuit, task: Task, find: Callable[[Task], Edges] | None, seed: int
    ) -> None:
        self.model, self.circuit, self.task, self.seed = model, circuit, task, seed
        self.find: Callable[[Task], Edges] = find if find is not None else lambda one: _noised(model, one)
        self.scores = self.find(task)
        if self.scores.graph != circuit.graph:
            raise InputsError("the circuit belongs to another graph than the scores that find= gives.")

    def cut(self, scores: Edges) -> Circuit:
        """As many edges as the circuit has, chosen as it was."""
        asked = max(len(self.circuit), int(self.circuit.meta.get("asked", 0)))
        return scores.circuit(n=asked, signed=bool(self.circuit.meta.get("signed", False)))

    def held(self, given: Task | None) -> Task:
        """What it is judged on."""
        if given is not None:
            return given.on(self.model) if given.model is None else given
        return self.task.heldout if self.task.recipe is not None else self.task

    def faithful(self, held: Task, random: int, parts: int) -> list[Line]:
        found: Faithfulness = faithfulness(
            self.model, self.circuit, held, random=random, parts=parts, seed=self.seed
        )  # fmt: skip
        (low, high), whole = found.interval(), max(found.completeness, default=None)
        seen = "on the prompts it was found on" if found.meta["same_data"] else "on other prompts than it was found on"
        least = min(map(abs, found.minimality), default=None)
        return [
            Line("faithful", "f", found.f, low, high, None, found.sound and found.distance <= NEAR, len(held), seen),
            Line("faithful", "completeness: largest gap", whole, holds=None if whole is None else whole <= NEAR,
                 n=len(found.completeness), why="parts of the circuit taken out of it and of the model"),
            Line("faithful", "minimality: smallest effect of an edge", least, n=len(found.minimality)),
        ]  # fmt: skip

    def stable(self, halves: int) -> list[Line]:
        groups = [str(one.get("template", n)) for n, one in enumerate(self.task.meta)]
        return stability(self.circuit, self.scores, self.cut, groups, draws=halves, seed=self.seed)

    def new(self, held: Task) -> list[Line]:
        if held is self.task:
            return [Line("new prompts", "search", why="the task has no held-out part")]
        return elsewhere("new prompts", held.name, self.circuit, self.scores, self.find(held), self.cut)

    def robust(self, paraphrases: Task | None) -> list[Line]:
        made = {"a token changed": tokens_changed(self.task, seed=self.seed), "typos": misspelt(self.task,
                seed=self.seed), "in other words": paraphrases}  # fmt: skip
        return [self._f("robustness", of, one, "no such prompts") for of, one in made.items()]

    def transfer(self, others: Mapping[str, Task]) -> list[Line]:
        found = [] if others else [Line("transfer", "other tasks", why="none were given (others=)")]
        for name, other in others.items():
            on = other.on(self.model) if other.model is None else other
            found += [self._f("transfer", name, on, ""),
                      *elsewhere("transfer", name, self.circuit, self.scores, self.find(on), self.cut)]  # fmt: skip
        return found

    def _f(self, asked: str, of: str, task: Task | None, why: str) -> Line:
        if task is None:
            return Line(asked, f"{of}: f", why=why)
        on = task.on(self.model) if task.model is None else task
        try:
            found: Faithfulness = faithfulness(self.model, self.circuit, on, random=0, parts=0)
        except InterpError as reason:  # no gap on these prompts
            return Line(asked, f"{of}: f", n=len(on), why=str(reason))
        low, high = found.interval()
        holds = found.distance <= NEAR if found.sound else None
        return Line(asked, f"{of}: f", found.f, low, high, None, holds, len(on), "" if found.sound else repr(found))

    def ablated(self, held: Task, steps: int) -> list[Line]:
        pair, found, f = _pair(self.model, held), [], []
        for ablation in ABLATIONS:
            ground = Ground(pair, ablation)
            values = ground.run(self.circuit.mask)
            error = float((values - ground.whole).square().mean().sqrt())
            f.append(ground.f(values))
            found.append(Line("ablation", f"{ablation}: f", f[-1], holds=abs(1 - f[-1]) <= NEAR, n=len(held),
                              why=f"error of the metric {error:.3g}"))  # fmt: skip
        found.append(Line("ablation", "spread of f over ablations", max(f) - min(f), holds=max(f) - min(f) <= NEAR))
        if steps:
            mean, learned = Constants(pair, steps=steps, rate=0.1).errors(self.circuit.mask)
            few = f"; {len(held)} prompts, so a constant may hold the answer" if len(held) < FEW else ""
            found.append(Line("ablation", "learned constant: error of the metric", learned, n=len(held),
                              why=f"{mean:.3g} with the mean{few}"))  # fmt: skip
        return found


register(
    Method(
        "interp.circuits.judge",
        number="checks of a circuit, each number in its own unit, and whether it speaks for the circuit",
        shown="table",
        needs=("task", "result"),
        papers=("2410.13032", "2409.09951", "2211.00593"),
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        made_of=("interp.edges", "interp.faithfulness"),
        passes=lambda t: 400,
        values=None,
        example=lambda t: judge(
            t.model, t.of("interp.edges").circuit(fraction=0.5), t.task, random=2, parts=2, halves=1, ablation_steps=1
        ),
    )
)
