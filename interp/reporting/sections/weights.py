"""What the first heads promote and suppress by their weights alone, where the vocabulary is small enough to ask.

The words are pairs: looking at the first raises (or lowers) the second most. Cost: a product of vocabulary x head width
x vocabulary a head. Limits: towers of words; the weights do not say where a head looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.heads.weights.head_circuits import head_circuits
from interp.hooks.sites import parse
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject

KEPT = 5
MOST = 2e10
"""Multiplications a head above which a report does not ask."""
SIGNS = {"promoted": "promotes", "suppressed": "suppresses"}


def weights(subject: Subject, leaders: list[str]) -> Answer:
    """By head, the pairs of words it promotes and suppresses; empty for heads of other towers."""
    found: Answer = {}
    for site in leaders:
        tower = parse(site).tower or next(iter(subject.stacks))
        if tower not in ("text", "decoder") or not _small(subject, tower):
            continue
        frame = head_circuits(subject.model, site, top=KEPT, draws=1, seed=subject.wanted.seed).tokens()
        found[site] = {
            name: [[f"{row['source']} → {row['target']}", row["logit"]] for row in mine.to_dict("records")]
            for sign, name in SIGNS.items()
            if len(mine := frame[frame["sign"] == sign])
        }
    return {"heads": found}


def _small(subject: Subject, tower: str) -> bool:
    config = subject.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    words = int(getattr(text, "vocab_size", 0) or 0)
    width = max(layer.d_head for layer in subject.model.anatomy.towers[tower].layers)
    return 0 < words**2 * width <= MOST


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    if not subject.amount("weights", 1):
        return
    made.keep("weights", steps.attempt("weights", lambda: weights(subject, made.leaders)))


def _plan(subject: Subject) -> None:
    """A head's matrices are read off as many short rows as its tower is wide, some times."""
    asked = [tower for tower in subject.stacks if tower in ("text", "decoder") and _small(subject, tower)]
    rows = len(subject.task) * subject.task.clean.length / subject.model.inputs(subject.model.example()).length
    towers = subject.model.ready().towers
    wide = max((towers[tower].width for tower in asked), default=0)
    if wide:
        passes = float(subject.wanted.top * (4 * wide / rows + 6))
        subject.budget.whole("weights", passes, "What the first heads promote by their weights")


def _page(made: Gathered) -> Mapping[str, Any]:
    found = made.answers.get("weights", {"heads": {}})["heads"]
    return {"cards": {site: {k: [tuple(pair) for pair in v] for k, v in one.items()} for site, one in found.items()}}


SECTION = Section("weights", 60, _measure, plan=_plan, page=_page)
