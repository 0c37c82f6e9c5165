"""Before any number: does the hook layer say what the model does, and does the model do the task at all.

The task is done where more than half of the prompts are answered right in both splits; whether clean and corrupt differ
is asked of the interval of their gap. Where they do not differ no head can have an effect, which the report then says
before anything else. Cost: the model's checks of itself; the prompts were run when they were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.prompts import told_apart
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject

PASSES = 1.0
MOST_WRONG = 0.5


def checks(subject: Subject, chosen: Answer) -> Answer:
    """Lines for a table (ok is null where a check does not apply), the task's numbers, and what is doubtful."""
    lines = [{"name": line.name, "ok": {"pass": True, "fail": False}.get(line.verdict), "detail": line.note}
             for line in subject.model.check().lines]  # fmt: skip
    train, held = chosen["train"], chosen["heldout"]
    lines += [
        {"name": "metric of clean and corrupt differ", "ok": told_apart(train), "detail": _gap(train)},
        {"name": "the model does the task", "ok": min(train["accuracy"], held["accuracy"]) > MOST_WRONG,
         "detail": f"{train['accuracy']:.1%} of {train['rows']} prompts, {held['accuracy']:.1%} of {held['tried']}"
                   f" held out ({subject.split})"},
    ]  # fmt: skip
    if subject.split == "heldout":
        lines.append(
            {"name": "held-out prompts can judge", "ok": not held["why"], "detail": held["why"] or _kept(held)}
        )
    return {"lines": lines, "task": train, "heldout": held, "split": subject.split, "doubt": _doubt(subject, train)}


def _gap(numbers: Answer) -> str:
    span = (
        "" if numbers["low"] is None else f", gap {numbers['gap']:+.3g} [{numbers['low']:+.3g}, {numbers['high']:+.3g}]"
    )
    return f"clean {numbers['clean']:.4g}, corrupt {numbers['corrupt']:.4g}{span}"


def _kept(held: Answer) -> str:
    return f"the {held['rows']} of {held['tried']} that are answered right: {_gap(held)}"


def _doubt(subject: Subject, train: Answer) -> str:
    """What is wrong with the question itself."""
    if not told_apart(train):
        return (
            f"Nothing can be said about heads: on {train['rows']} prompts of {subject.task.name} the model does not"
            f" tell clean from corrupt ({_gap(train)})."
        )
    if train["accuracy"] <= MOST_WRONG:
        return (
            f"The model does not do this task: {train['accuracy']:.0%} of {train['rows']} prompts are answered right."
            " What follows is about what moves its answer."
        )
    return ""


def _page(made: Gathered) -> Mapping[str, Any]:
    if not made.checks:
        return {}
    task, held = made.checks["task"], made.checks["heldout"]
    facts = [
        ("prompts", str(task["rows"])), ("right answers", f"{task['accuracy']:.1%}"),
        ("metric, clean and corrupt", f"{task['clean']:.4g}, {task['corrupt']:.4g}"),
    ]  # fmt: skip
    if made.checks["split"] == "heldout":
        facts.append(("held out", f"{held['accuracy']:.1%} of {held['tried']} right, {held['rows']} of them kept"))
    return {"checks": made.checks["lines"], "facts": facts}


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    chosen = made.answers["prompts"]
    made.answers["checks"] = steps.do("checks", lambda: checks(subject, chosen))
    if why := made.checks["heldout"]["why"]:
        made.left_out.append(f"Nothing is judged on held-out prompts: {why}.")


SECTION = Section("checks", 0, _measure, plan=lambda subject: subject.budget.must("checks", PASSES), page=_page)
