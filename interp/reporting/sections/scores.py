"""What every head does to the task: exact patching where that is affordable, estimates that are checked elsewhere.

Exact means both directions of `interp.patch` for every head of every tower. Beside it stand the estimates (relp, atp)
and the direct effect, so that the methods can be compared; where patching every head would cost too much, relp (or atp
where relp does not fit) ranks the heads, a sample of them and the first `top` are patched, and the rest say that they
are not verified. A method that does not fit the model says why. Cost: see `forwards`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from interp.attribution.attribute import attribute
from interp.hooks.head_names import head_of
from interp.kernels.errors import InterpError
from interp.patching.direct_effect import direct_effect
from interp.patching.patch import patch
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject
from interp.results.effects import Effects

AFFORDABLE = 40_000
"""Heads times prompts that are patched exactly without being asked."""
ESTIMATES = ("relp", "atp")
BUDGET = 2**29
"""Bytes of a sweep that are under way together; fixed, so that chunks do not depend on what else is running."""


def affordable(subject: Subject) -> bool:
    """Whether every head is patched exactly."""
    if subject.wanted.exact == "auto":
        return subject.count * len(subject.task) <= AFFORDABLE
    return bool(subject.wanted.exact)


def forwards(subject: Subject) -> int:
    """An upper bound of the cost, in forward passes of all prompts: replay does only what a patch can reach."""
    each = 2 * subject.count if affordable(subject) else 2 * subject.wanted.top + 2 * 256
    return each + 8 * len(subject.stacks) + 2


def scored(subject: Subject, steps: Steps) -> tuple[dict[str, Effects], list[str]]:
    """Effects by name, "patch text" and so on, and why some methods have none."""
    work: dict[str, Callable[[], Effects]] = {}
    for tower in subject.stacks:
        if affordable(subject):
            work[f"patch {tower}"] = partial(_exact, subject, steps, tower)
        for method in ESTIMATES:
            work[f"{method} {tower}"] = partial(_estimate, subject, tower, method)
    work["direct effect"] = partial(direct_effect, subject.model, subject.task.clean, metric=subject.task.metric)
    found, refused = _all(steps, work)
    if not affordable(subject):
        more, why = _all(steps, _checks_of_the_top(subject, found))
        found, refused = {**found, **more}, refused + why
    if not found:
        raise InterpError(f"no method fits this model: {'; '.join(refused)}")
    return found, refused


def _all(steps: Steps, work: dict[str, Callable[[], Effects]]) -> tuple[dict[str, Effects], list[str]]:
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


def _exact(subject: Subject, steps: Steps, tower: str) -> Effects:
    sites, out = subject.heads(tower), steps.inside / f"sweep-patch-{tower}"
    return _patched(subject, sites, out=out)


def _patched(subject: Subject, sites: Any, **how: Any) -> Effects:
    task = subject.task
    return patch(
        subject.model, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites, both=True, budget=BUDGET,
        seed=subject.wanted.seed, **how,
    )  # fmt: skip


def _estimate(subject: Subject, tower: str, method: str) -> Effects:
    task = subject.task
    check: Any = 0 if affordable(subject) else "auto"
    return attribute(
        subject.model, base=task.corrupt, source=task.clean, metric=task.metric, sites=subject.heads(tower),
        method=method, verify=check if method == ESTIMATES[0] else 0, seed=subject.wanted.seed,
    )  # fmt: skip


def _checks_of_the_top(subject: Subject, found: dict[str, Effects]) -> dict[str, Callable[[], Effects]]:
    """Exact patching of the heads that the estimates put first."""
    work: dict[str, Callable[[], Effects]] = {}
    for tower in subject.stacks:
        first = next((found[f"{m} {tower}"] for m in ESTIMATES if f"{m} {tower}" in found), None)
        if first is not None:
            sites = first.top(subject.wanted.top)["site"].tolist()
            work[f"patch {tower}"] = partial(_patched, subject, sites)
    return work


def primary(found: dict[str, Effects], tower: str) -> Effects | None:
    """What heads of a tower are ranked by: exact patching of all of them, else the first estimate there is."""
    patched = found.get(f"patch {tower}")
    estimates = [found[f"{method} {tower}"] for method in ESTIMATES if f"{method} {tower}" in found]
    if patched is not None and all(len(patched.sites) >= len(one.sites) for one in estimates):
        return patched
    return estimates[0] if estimates else patched


def leaders(subject: Subject, found: dict[str, Effects]) -> list[str]:
    """The heads of all towers with the largest effects, at most `top`, the strongest first."""
    sized: list[tuple[float, str]] = []
    for tower in subject.stacks:
        effects = primary(found, tower)
        if effects is not None:
            sized += [(-abs(float(v)), head_of(s)) for s, v in zip(effects.sites, effects.mean, strict=True)]
    return [site for size, site in sorted(sized) if size < 0][: subject.wanted.top]


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    made.effects, refused = scored(subject, steps)
    made.refused += refused
    made.leaders = leaders(subject, made.effects)


SECTION = Section("scores", 10, _measure, forwards=forwards)
