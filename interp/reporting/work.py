"""A report under way: what was planned, what is known so far, and the page that is written before all of it is.

Sections ask the budget in their order before any work, then do it; after each the page is written again, at most every
`EVERY` seconds, so that a first page is there once heads have estimates. None of this is in what is written at the end:
that comes from the journaled answers alone.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import interp
from interp.circuits.real.verdict import Verdict
from interp.cost import Cost, cost, resident
from interp.heads.rows import head_rows, joined, ranked
from interp.hooks.sites import plain_layer
from interp.reporting.pages.files import write_page
from interp.reporting.sections import sections
from interp.reporting.steps.budget import PASSES, Budget, asked, granted
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.prompts import choose
from interp.reporting.steps.steps import Answer, Say, Steps
from interp.reporting.steps.subject import Subject, revision_of
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model

EVERY = 20.0
"""Seconds between two pages of a report that is not complete."""


class Underway:
    """One report under way."""

    def __init__(self, model: Model, called: str, given: list[Any], plan: Mapping[str, Any], steps: Steps) -> None:
        facts = {"model": called, "revision": revision_of(model), "split": "given"}
        verdicts = [one for one in given if isinstance(one, Verdict)]
        given = [one for one in given if not isinstance(one, Verdict)]
        self.model, self.steps, self.results = model, steps, given
        self.given = [head_rows(one, model.ready(), **facts) for one in given]
        self.made = Gathered(f"Heads of {called}", called, "", joined(self.given), plan, towers=_towers(model))
        if verdicts:
            self.made.answers["real"] = {"verdicts": [one.facts() | {"said": repr(one)} for one in verdicts]}
        self.said: Cost | None = None
        self.started, self.clock, self.written = time.time(), time.perf_counter(), -EVERY
        self.first_page: dict[str, float] | None = None
        self.memory = resident()

    def measured(self, subject: Subject, say: Say | None) -> None:
        """Everything about a task."""
        made, steps, auto = self.made, self.steps, subject.wanted.prompts == "auto" and not _small(subject)
        made.title, made.task = f"{made.title} on {subject.task.name}", subject.task.name
        made.answers["prompts"] = steps.do("prompts", lambda: choose(subject.task, auto=auto))
        subject = subject.on(made.answers["prompts"])
        self.said, subject = _planned(subject, steps, _looked_at(made.answers["prompts"]))
        if say is not None:
            say(str(self.said))
        made.left_out += subject.budget.left_out
        for n, section in enumerate(sections()):
            section.measure(made, subject, steps)
            made.pending = [later.name for later in sections()[n + 1 :] if later.name in subject.budget.working]
            if made.effects and made.pending and time.perf_counter() - self.written > EVERY:
                self._page_so_far(subject)
        made.pending = []
        self.rows(subject)
        made.refused += steps.notes
        self.closed()

    def rows(self, subject: Subject) -> None:
        """All rows, as far as they are known."""
        self.made.rows = _rows(self.made, subject, self.given)

    def closed(self) -> None:
        """What needs all scores, and results that were given among them."""
        made = self.made
        made.effects |= {
            f"{_method(one)} given {n}": one for n, one in enumerate(self.results) if isinstance(one, Effects)
        }
        for section in sections():
            section.close(made, int(made.about.get("seed", 0)))

    def _page_so_far(self, subject: Subject) -> None:
        """A page of what there is; the next one waits a while."""
        self.rows(subject)
        write_page(self.made, self.steps, [])
        self.written = time.perf_counter()
        if self.first_page is None:
            done = sum(passes for name, passes in subject.budget.planned.items() if name in self.steps.reached)
            self.first_page = {"seconds": round(self.written - self.clock, 3), "passes planned": round(done, 1)}

    def run(self) -> dict[str, Any]:
        """How it came about."""
        made, steps = self.made, self.steps
        return {
            "format": 1, "interp": interp.__version__, "plan": dict(made.about), "finding": made.finding,
            "warnings": made.warnings, "checks": made.checks.get("lines", []),
            "cost": None if self.said is None else self.said.to_dict(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": steps.seconds,
            "processor seconds": steps.processor,
            "seconds in all": round(time.perf_counter() - self.clock, 3), "first page": self.first_page,
            "passes planned": {name: round(passes, 2) for name, passes in steps.planned.items()},
            "memory_before_mb": None if self.memory is None else self.memory // 2**20,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }  # fmt: skip


def _small(subject: Subject) -> bool:
    """Whether all prompts can be taken whatever they cost."""
    return granted(subject.multiplications) > PASSES


def _looked_at(chosen: Answer) -> float:
    """The passes it took to choose the prompts, both sides."""
    train, held = chosen["train"], chosen["heldout"]
    return 2.0 * (1 + (held["tried"] / train["rows"] if chosen["split"] == "heldout" else 0))


def _planned(subject: Subject, steps: Steps, looked_at: float) -> tuple[Cost, Subject]:
    """The budget in passes, written down, and what is done within it."""
    passes, minutes = asked(subject.wanted.budget)
    found = cost(subject.model, subject.task.clean)

    def settled() -> Answer:
        if minutes is not None:
            return {"passes": max(1, round(60 * minutes / max(found.probe_seconds, 1e-6))), "minutes": minutes}
        return {"passes": granted(subject.multiplications) if passes is None else passes}

    subject = replace(subject, budget=Budget(float(steps.do("budget", settled)["passes"])))
    subject.budget.must("prompts", looked_at)
    for section in sections():
        before = subject.budget.spent
        if section.plan is not None:
            section.plan(subject)
        subject.budget.working += [section.name] * (subject.budget.spent > before)
    steps.planned, steps.pace = subject.budget.planned, found.probe_seconds
    if subject.budget.spent > subject.budget.total:
        subject.budget.left_out.append(
            f"The least that a report does takes about {subject.budget.spent:,.0f} passes, more than the budget of"
            f" {subject.budget.total:,.0f}."
        )
    return replace(found, forwards=math.ceil(subject.budget.spent), budget=subject.budget.total), subject


def _rows(made: Gathered, subject: Subject, given: list[Any]) -> Any:
    """All rows with what is known about the run; estimates get the exact value of their head where it was patched."""
    anatomy, facts = subject.model.anatomy, {"model": made.model, "revision": subject.revision, "task": made.task}
    found = (*made.effects.values(), *made.measures.values())
    rows = [head_rows(one, anatomy, **facts, split="train") for one in found]
    rows += [frame.assign(**facts, split="train") for frame in made.frames]
    every = joined([*rows, *given])
    patched = every[(every["method"] == "patch") & (every["split"] == "train")]
    exact = {(s, d): v for s, d, v in zip(patched["site"], patched["direction"], patched["estimate"], strict=True)}
    values = [exact.get((s, d), float("nan")) for s, d in zip(every["site"], every["direction"], strict=True)]
    effect = every["direction"].isin(["denoise", "noise"])
    every = every.assign(exact=[v if e else float("nan") for v, e in zip(values, effect, strict=True)])
    verified = every["exact"].notna().where(effect, other=None).astype("boolean")
    return ranked(every.assign(verified=verified, label=[made.labels.get(s, "") for s in every["site"]])).astype(
        {"label": "string"}
    )


def _method(effects: Effects) -> str:
    return str(effects.meta.get("method", "patch"))


def _towers(model: Model) -> list[dict[str, Any]]:
    towers = model.anatomy.towers
    return [
        {"name": name, "prefix": "" if len(towers) == 1 else f"{name}.",
         "layers": [plain_layer(x.index) for x in tower.layers], "heads": [x.heads for x in tower.layers],
         "kv_heads": [x.kv_heads for x in tower.layers]}
        for name, tower in towers.items()
    ]  # fmt: skip
