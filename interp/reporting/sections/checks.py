"""Before any number: does the hook layer say what the model does, and does the model do the task at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.metrics.edited import scored
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject
from interp.tasks.task import Task

ALIKE = 1e-6


def checks(subject: Subject) -> Answer:
    """Lines for a table (ok is null where a check does not apply), and the task's numbers."""
    lines = [{"name": line.name, "ok": {"pass": True, "fail": False}.get(line.verdict), "detail": line.note}
             for line in subject.model.check().lines]  # fmt: skip
    task = _numbers(subject.task)
    heldout = _numbers(subject.heldout) if subject.split == "heldout" else task
    gap = task["clean"] - task["corrupt"]
    lines += [
        {"name": "metric of clean and corrupt differ", "ok": abs(gap) > ALIKE,
         "detail": f"clean {task['clean']:.4g}, corrupt {task['corrupt']:.4g}"},
        {"name": "the model does the task", "ok": task["accuracy"] > 0.5,
         "detail": f"{task['accuracy']:.1%} of {len(subject.task)} prompts, {heldout['accuracy']:.1%} of"
                   f" {len(subject.heldout)} held out ({subject.split})"},
    ]  # fmt: skip
    return {"lines": lines, "task": task, "heldout": heldout, "split": subject.split}


def _numbers(task: Task) -> dict[str, float]:
    right = task.right()
    return {
        "accuracy": sum(right) / len(right), "clean": float(_metric(task, "clean").mean()),
        "corrupt": float(_metric(task, "corrupt").mean()),
    }  # fmt: skip


def _metric(task: Task, side: str) -> Tensor:
    """The metric of one side, per prompt."""
    model: Any = task.model
    found = []
    for start in range(0, len(task), 32):
        part = task.take(range(start, min(start + 32, len(task))))
        x = getattr(part, side)
        found.append(scored(model, x, part.metric))
    return torch.cat(found)


def _page(made: Gathered) -> Mapping[str, Any]:
    if not made.checks:
        return {}
    task = made.checks["task"]
    facts = [("metric, clean and corrupt", f"{task['clean']:.4g}, {task['corrupt']:.4g}"),
             ("right answers", f"{task['accuracy']:.1%}")]  # fmt: skip
    return {"checks": made.checks["lines"], "facts": facts}


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    made.answers["checks"] = steps.do("checks", lambda: checks(subject))


SECTION = Section("checks", 0, _measure, forwards=lambda subject: 6, page=_page)
