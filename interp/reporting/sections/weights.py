"""What the first heads promote and suppress by their weights alone, where the vocabulary is small enough to ask.

The words are pairs: looking at the first raises (or lowers) the second most. Cost: a product of vocabulary x head width
x vocabulary a head. Limits: towers of words; the weights do not say where a head looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.heads.head_circuits import head_circuits
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
        if tower not in ("text", "decoder") or not _affordable(subject, site):
            continue
        frame = head_circuits(subject.model, site, top=KEPT, draws=1, seed=subject.wanted.seed).tokens()
        found[site] = {
            name: [[f"{row['source']} → {row['target']}", row["logit"]] for row in mine.to_dict("records")]
            for sign, name in SIGNS.items()
            if len(mine := frame[frame["sign"] == sign])
        }
    return {"heads": found}


def _affordable(subject: Subject, site: str) -> bool:
    config = subject.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    words = int(getattr(text, "vocab_size", 0) or 0)
    width = subject.model.anatomy.layer(subject.model.anatomy.one(f"{site}.z")).d_head
    return 0 < words**2 * width <= MOST


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    made.keep("weights", steps.attempt("weights", lambda: weights(subject, made.leaders)))


def _forwards(subject: Subject) -> float:
    """A head's matrices are read off as many short rows as its tower is wide, some times."""
    rows = len(subject.task) * subject.task.clean.length / subject.model.inputs(subject.model.example()).length
    towers = subject.model.ready().towers
    wide = max((towers[name].width for name in subject.stacks if name in ("text", "decoder")), default=0)
    return float(subject.wanted.top * (4 * wide / rows + 6 if wide else 0))


def _page(made: Gathered) -> Mapping[str, Any]:
    found = made.answers.get("weights", {"heads": {}})["heads"]
    return {"cards": {site: {k: [tuple(pair) for pair in v] for k, v in one.items()} for site, one in found.items()}}


SECTION = Section("weights", 60, _measure, forwards=_forwards, page=_page)
