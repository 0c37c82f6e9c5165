"""How heads attend on these prompts, whatever the task: entropy, distance, largest weight, sinks.

What a head does for one narrow task rarely says what it does in general, so a report has both. The numbers are means
over a prompt's real rows, then over prompts, with intervals over prompts. Cost: two forward passes a tower. Limits:
towers whose attention goes through transformers' interface; others say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.hooks.head_names import heads_at
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Label, Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject
from interp.results.effects import Effects
from interp.sink.sinks import sinks

STATS = {"entropy": "attention entropy", "distance": "attention distance", "max": "largest weight"}
UNITS = {"attention entropy": "nats", "attention distance": "positions", "largest weight": "share", "sink": "share"}
PROMPTS = 16
ATTENTION, SINKS = 2.0, 3.0
"""Passes of the prompts that are looked at."""
Measure = Callable[[Subject, str], dict[str, Effects]]


def broad(subject: Subject, steps: Steps) -> tuple[dict[str, Effects], list[str]]:
    """Measures by name, "attention entropy text" and so on, and why some towers have none."""
    found: dict[str, Effects] = {}
    refused = []
    for tower, prefix in subject.stacks.items():
        for name, measure in (("attention", _attention), ("sinks", _sinks)):
            result = f"{name}-{tower}"
            if not subject.amount(f"broad-{result}", 1):
                continue
            answer = steps.attempt(f"broad-{result}", partial(_kept, steps, result, measure, subject, prefix))
            if "refused" in answer:
                refused.append(str(answer["refused"]))
            else:
                found |= {f"{m} {tower}": Effects.load(steps.folder / at) for m, at in answer["results"].items()}
    return found, refused


def _kept(steps: Steps, result: str, measure: Measure, subject: Subject, prefix: str) -> Answer:
    measures = measure(subject, prefix)
    where = {name: f"results/{result}/{name.replace(' ', '-')}" for name in measures}
    for name, one in measures.items():
        one.save(steps.folder / where[name])
    return {"results": where}


def _some(subject: Subject) -> Any:
    return subject.task.take(range(min(PROMPTS, len(subject.task)))).clean


def _attention(subject: Subject, prefix: str) -> dict[str, Effects]:
    x = _some(subject)
    wanted = {name: title for name, title in STATS.items() if name != "distance" or not _crossed(subject, prefix)}
    stats = subject.model.attention(x, stats=list(wanted), heads=f"{prefix}L*")
    sites = [name for site, some in stats.heads.items() for name in heads_at(site, some)]
    return {
        title: measured(sites, torch.cat([_rows(x, s, v[name]) for s, v in stats.values.items()]), title)
        for name, title in wanted.items()
    }


def _crossed(subject: Subject, prefix: str) -> bool:
    """Whether some layers of a tower are cross-attention, whose rows and keys are at no distance."""
    layers = subject.model.anatomy.tower(prefix.rstrip(".") or None, text=prefix).layers
    return any(layer.kind == "cross" for layer in layers)


def _rows(x: Any, site: Site, values: Tensor) -> Tensor:
    """[head, example] means over the real rows of [example, head, row]."""
    valid = tower_inputs(x, site).valid.to(values.device)[:, None].double()
    return ((values.double() * valid).sum(2) / valid.sum(2)).T.cpu()


def _sinks(subject: Subject, prefix: str) -> dict[str, Effects]:
    found = sinks(subject.model, _some(subject), heads=f"{prefix}L*", least=2, activations=False)
    return {"sink": measured(list(found.sites), found.first.double(), "sink")}


def measured(sites: list[str], values: Tensor, method: str) -> Effects:
    """Numbers [head, example] as a result with intervals; they are measures, not effects of a patch."""
    return Effects(
        tuple(sites), None, values, torch.zeros(values.shape[1], dtype=torch.float64), None, 0.0,
        {"method": method, "metric": UNITS.get(method, ""), "corruption": "none"},
    )  # fmt: skip


def _plan(subject: Subject) -> None:
    some = min(PROMPTS, len(subject.task)) / len(subject.task)
    for tower in subject.stacks:
        for name, passes in (("attention", ATTENTION), ("sinks", SINKS)):
            said = f"How heads of {tower} attend: {name}"
            subject.budget.whole(f"broad-{name}-{tower}", passes * some, said)


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    made.measures, refused = broad(subject, steps)
    made.refused += refused


SECTION = Section(
    "broad",
    20,
    _measure,
    plan=_plan,
    labels={
        "attention entropy": Label("mean entropy of the head's rows"),
        "attention distance": Label("mean distance between a row and the keys it weighs, in a picture between patches"),
        "largest weight": Label("mean of each row's largest weight"),
    },
)
