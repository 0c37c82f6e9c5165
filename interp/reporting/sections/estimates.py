"""What every head does to the task by estimates, and what it writes straight to the answer: the first thing on a page.

A gradient's work for all heads at once, so that something can be read early; which estimate leads is decided where some
heads are patched exactly (`scores.py`). A method that does not fit the model says why.
Cost: about five forward passes an estimate and tower, three for the direct effect. Limits: see each method.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from interp.attribution.attribute import attribute
from interp.hooks.head_names import head_of
from interp.patching.direct_effect import direct_effect
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject
from interp.results.effects import Effects

ESTIMATES = ("relp", "atp")
EACH, DIRECT = 5.0, 4.0
"""Passes, backward ones counted as two."""


def estimate(subject: Subject, tower: str, method: str) -> Effects:
    """One way of attribution for all heads of a tower, unchecked."""
    task = subject.task
    return attribute(
        subject.model, base=task.corrupt, source=task.clean, metric=task.metric, sites=subject.heads(tower),
        method=method, verify=0, seed=subject.wanted.seed,
    )  # fmt: skip


def made_of(steps: Steps, work: Mapping[str, Callable[[], Effects]]) -> tuple[dict[str, Effects], list[str]]:
    """Effects by name, "relp text" and so on, and why some have none."""
    found, refused = {}, []
    for name, make in work.items():
        result = name.replace(" ", "-")
        answer = steps.attempt(f"score-{result}", partial(_kept, steps, result, make))
        if "refused" in answer:
            refused.append(str(answer["refused"]))
        else:
            found[name] = Effects.load(steps.folder / "results" / result)
    return found, refused


def _kept(steps: Steps, name: str, make: Callable[[], Effects]) -> Answer:
    effects = make()
    _steady(effects).save(steps.folder / "results" / name)
    shutil.rmtree(steps.inside / f"sweep-{name}", ignore_errors=True)
    return {"result": f"results/{name}", "cells": len(effects.sites), "said": repr(effects).partition("; Logit")[0]}


def _steady(effects: Effects) -> Effects:
    """Without what depends on what ran before: how many passes a method needed, and how long."""
    meta = {key: value for key, value in effects.meta.items() if key not in ("passes", "seconds")}
    return replace(effects, meta=meta, reverse=None if effects.reverse is None else _steady(effects.reverse))


def primary(made: Gathered, tower: str) -> Effects | None:
    """What heads of a tower are ranked by: exact patching of all of them, else the leading estimate there is."""
    patched = made.effects.get(f"patch {tower}")
    estimates = [made.effects[f"{method} {tower}"] for method in made.leading if f"{method} {tower}" in made.effects]
    if patched is not None and all(len(patched.sites) >= len(one.sites) for one in estimates):
        return patched
    return estimates[0] if estimates else patched


def leaders(made: Gathered, subject: Subject) -> list[str]:
    """The heads of all towers with the largest effects, at most `top`, the strongest first."""
    sized: list[tuple[float, str]] = []
    for tower in subject.stacks:
        effects = primary(made, tower)
        if effects is not None:
            sized += [(-abs(float(v)), head_of(s)) for s, v in zip(effects.sites, effects.mean, strict=True)]
    return [site for size, site in sorted(sized) if size < 0][: subject.wanted.top]


def _plan(subject: Subject) -> None:
    for tower in subject.stacks:
        for method in ESTIMATES:
            subject.budget.must(f"score-{method}-{tower}", EACH)
    subject.budget.whole("score-direct-effect", DIRECT, "Direct effects")


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    work: dict[str, Callable[[], Effects]] = {
        f"{method} {tower}": partial(estimate, subject, tower, method)
        for tower in subject.stacks
        for method in ESTIMATES
    }
    if subject.amount("score-direct-effect", 1):
        work["direct effect"] = partial(
            direct_effect, subject.model, subject.task.clean, metric=subject.task.metric
        )  # fmt: skip
    found, refused = made_of(steps, work)
    made.effects |= found
    made.refused += refused
    made.leaders = leaders(made, subject)


SECTION = Section("estimates", 10, _measure, plan=_plan)
