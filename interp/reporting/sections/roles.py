"""What kind of head each is, by the published definitions, as rows of a report and as labels of its heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature, unwrap
from typing import Any

from interp.heads.head_roles import head_roles
from interp.heads.rows import head_rows
from interp.reporting.sections.broad import PROMPTS
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Label, Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject

LABELLED = 0.5
"""A head is labelled with the kinds whose value is at least this: a convention; the report gives the values too."""
KEPT = ("site", "method", "estimate", "low", "high", "n")
READ, ONCE = 1.5, 3
"""Passes of the tokens that are read; copying reads its own once more, against the whole vocabulary."""
UNLABELLED = ("copying",)
"""Kinds whose value is not a share of attention, so that the convention means nothing for them."""


def roles(subject: Subject, steps: Steps) -> tuple[list[Any], list[str]]:
    """One table of rows a tower, and why some towers have none."""
    frames, refused = [], []
    for tower, prefix in subject.stacks.items():
        if not subject.amount(f"roles-{tower}", 1):
            continue
        answer = steps.attempt(f"roles-{tower}", partial(_roles, subject, prefix))
        if "refused" in answer:
            refused.append(str(answer["refused"]))
        else:
            frames.append(answer["rows"])
    return [
        head_rows(_frame(rows), subject.model.anatomy, metric="share", direction="none") for rows in frames
    ], refused


def _roles(subject: Subject, prefix: str) -> Answer:
    some = subject.task.take(range(min(PROMPTS, len(subject.task)))).clean
    found = head_roles(subject.model, some, heads=f"{prefix}L*", seed=subject.wanted.seed)
    frame = head_rows(found, subject.model.anatomy)
    return {"rows": frame[list(KEPT)].to_dict("records")}


def _frame(rows: list[dict[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame(rows, columns=list(KEPT))


def labels(frames: list[Any]) -> dict[str, str]:
    """By head, the kinds that fit it, the best first."""
    found: dict[str, list[tuple[float, str]]] = {}
    for frame in frames:
        for row in frame.to_dict("records"):
            if row["estimate"] >= LABELLED and not row["method"].startswith(UNLABELLED):
                found.setdefault(row["site"], []).append((-row["estimate"], row["method"].partition(" @ ")[0]))
    return {site: ", ".join(dict.fromkeys(name for _, name in sorted(kinds))) for site, kinds in found.items()}


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    made.frames, refused = roles(subject, steps)
    made.refused += refused
    made.labels = labels(made.frames)


def _plan(subject: Subject) -> None:
    """The prompts, and as many random tokens as kinds are measured on, said several times and once."""
    asked = signature(unwrap(head_roles)).parameters
    n, length, repeats = (asked[name].default for name in ("n", "length", "repeats"))
    tokens, random = subject.task.clean.length * len(subject.task), n * length * (repeats + ONCE)
    some = subject.task.clean.length * min(PROMPTS, len(subject.task))
    for tower in subject.stacks:
        passes = READ * (some + (random if tower == "text" else 0)) / tokens
        subject.budget.whole(f"roles-{tower}", passes, f"Kinds of heads of {tower}")


def _page(made: Gathered) -> Mapping[str, Any]:
    kinds = {site: made.labels.get(site, "").split(", ") for site in (*made.leaders, *made.labels)}
    return {"cards": {site: {"roles": [(kind, None) for kind in some if kind]} for site, some in kinds.items()}}


SECTION = Section(
    "roles",
    30,
    _measure,
    plan=_plan,
    page=_page,
    labels={
        "induction": Label("as its method defines it", signed=True, papers=("2209.11895",), drawn=False),
        "previous": Label("as its method defines it", signed=True, papers=("1905.09418",), drawn=False),
    },
)
