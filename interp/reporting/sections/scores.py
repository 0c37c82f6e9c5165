"""What every head does to the task, exactly, where that is affordable; else a sample that says which estimate to trust.

Exact means both directions of `interp.patch` for every head of every tower. Where that would cost too much, a sample is
patched: the heads that either estimate puts first for certain, and others drawn evenly from the rest, weighted by one
over their chance. Each estimate's rank correlation with the patched heads decides which of them leads, and the report
says so: relp is the better one on most language models and can be the worse one elsewhere.
Cost: two sweeps (`Subject.sweep`), or their part for the sample. Limits: single heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.attribution.verify import pearson, ranks
from interp.hooks.head_names import head_of
from interp.kernels.errors import InterpError
from interp.patching.patch import patch
from interp.reporting.sections.estimates import ESTIMATES, leaders, made_of, primary
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject
from interp.results.effects import Effects

BUDGET = 2**29
"""Bytes of a sweep that are under way together; fixed, so that chunks do not depend on what else is running."""
AROUND = 1.4
"""What a sweep takes for each pass of the products that it was counted as."""
SHARE, SAMPLED = 0.45, 0.3
"""The parts of what is left of the budget that exact patching of all heads, or of a sample, may take."""
SAMPLE, LEAST = 256, 8
"""The largest sample, and the smallest one that decides between estimates."""
PART = 4
"""One in so many heads is in a sample where patching all was not wanted."""


def _plan(subject: Subject) -> None:
    budget, wanted = subject.budget, subject.wanted
    for tower in subject.stacks:
        each, heads = 2 * AROUND * subject.sweep(tower), _heads(subject, tower)
        name, said = f"score-patch-{tower}", f"Exact patching of all {heads} heads of {tower}, both directions,"
        if wanted.exact is True:
            budget.must(name, each)
            budget.amounts[name] = heads
        elif wanted.exact is False or not budget.whole(name, each, said, share=SHARE):
            most = heads if wanted.exact == "auto" else heads // PART
            budget.some(
                name, each / heads, min(heads, max(wanted.top, min(SAMPLE, most))),
                f"Heads of {tower} patched to check estimates", least=min(heads, 3), share=SAMPLED,
            )  # fmt: skip
        else:
            budget.amounts[name] = heads


def _heads(subject: Subject, tower: str) -> int:
    return sum(layer.heads for layer in subject.model.anatomy.towers[tower].layers)


def _patched(subject: Subject, sites: Any, **how: Any) -> Effects:
    task = subject.task
    return patch(
        subject.model, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites, both=True, budget=BUDGET,
        seed=subject.wanted.seed, **how,
    )  # fmt: skip


def sample(made: Gathered, subject: Subject, tower: str, count: int) -> list[str]:
    """Heads to patch: those that some estimate puts first, then others at random, in the order of the tower."""
    scored = _scored(made, tower)
    if not scored:
        return []
    order = _first_of_each(scored)
    sure = _sure(subject, count)
    rest = order[sure:]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(subject.wanted.seed))[: count - sure]
    chosen = {*order[:sure], *(rest[n] for n in draw.tolist())}
    return [f"{head_of(site)}.z" for n, site in enumerate(scored[0].sites) if n in chosen]


def _sure(subject: Subject, count: int) -> int:
    """How many of a sample are the first of either estimate."""
    return min(count, len(ESTIMATES) * subject.wanted.top)


def _scored(made: Gathered, tower: str) -> list[Effects]:
    return [made.effects[f"{m} {tower}"] for m in ESTIMATES if f"{m} {tower}" in made.effects]


def _first_of_each(scored: list[Effects]) -> list[int]:
    """Heads by the best place any estimate gives them."""
    places = [one.mean.abs().argsort(descending=True, stable=True).argsort(stable=True) for one in scored]
    best = torch.stack(places).min(0).values
    return [int(n) for n in best.argsort(stable=True)]


def agreements(made: Gathered, subject: Subject) -> dict[str, float]:
    """Each estimate's rank correlation with the heads that were patched, of all towers together."""
    found: dict[str, float] = {}
    towers = [tower for tower in subject.stacks if f"patch {tower}" in made.effects]
    for method in ESTIMATES:
        pairs = [_beside(made, subject, method, tower) for tower in towers if f"{method} {tower}" in made.effects]
        if pairs:
            x, y, weight = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            value = pearson(ranks(x, weight), ranks(y, weight), weight)
            found |= {} if value is None or len(x) < LEAST else {method: value}
    return found


def _beside(made: Gathered, subject: Subject, method: str, tower: str) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates, exact effects and weights of the heads of a tower that have both."""
    exact, guess = made.effects[f"patch {tower}"], made.effects[f"{method} {tower}"]
    value = dict(zip(map(head_of, guess.sites), guess.mean.double(), strict=True))
    heads = [head_of(site) for site in exact.sites]
    weight = torch.ones(len(heads), dtype=torch.float64)
    if len(heads) < len(value):
        sure = _sure(subject, len(heads))
        first = {head_of(guess.sites[n]) for n in _first_of_each(_scored(made, tower))[:sure]}
        others = (len(value) - sure) / max(1, len(heads) - sure)
        weight = torch.tensor([1.0 if head in first else others for head in heads], dtype=torch.float64)
    return torch.stack([value[head] for head in heads]), exact.mean.double(), weight


def _lead(made: Gathered, subject: Subject) -> None:
    """Put the estimate that came nearer first, and say so where heads are ranked by it."""
    near = agreements(made, subject)
    made.answers["agreement with exact"] = near
    if len(near) < 2:
        return
    made.leading = sorted(near, key=lambda name: -near[name])
    best, other = made.leading[:2]
    if any(primary(made, tower) is made.effects.get(f"{best} {tower}") for tower in subject.stacks):
        made.left_out.append(
            f"Heads are ranked by {best}, which orders the heads that were patched exactly better than {other} does"
            f" (rank correlation {near[best]:.2f} and {near[other]:.2f})."
        )


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    work = {}
    for tower in subject.stacks:
        name = f"patch {tower}"
        count = subject.amount(f"score-patch-{tower}", _heads(subject, tower))
        if count >= _heads(subject, tower):
            out = steps.inside / f"sweep-patch-{tower}"
            work[name] = partial(_patched, subject, subject.heads(tower), out=out)
        elif count and (sites := sample(made, subject, tower, count)):
            work[name] = partial(_patched, subject, sites)
    found, refused = made_of(steps, work)
    made.effects = {**found, **made.effects}
    made.refused += refused
    if not made.effects:
        raise InterpError(f"no method fits this model: {'; '.join(made.refused)}")
    _lead(made, subject)
    made.leaders = leaders(made, subject)


def _page(made: Gathered) -> dict[str, Any]:
    near: Answer = made.answers.get("agreement with exact", {})
    return {"facts": [("rank correlation with exact patching", _said(near))]} if near else {}


def _said(near: Answer) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in near.items())


SECTION = Section("scores", 15, _measure, plan=_plan, page=_page)
