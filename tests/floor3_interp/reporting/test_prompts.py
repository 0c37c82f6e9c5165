"""A report stands on enough prompts, judges on held-out ones that are answered right, and says when it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reported import SMALL, model

import interp
from interp import tasks
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host
from interp.reporting.steps.gathered import FEW
from interp.reporting.steps.prompts import NEAR, Sides, choose, told_apart
from interp.reporting.steps.subject import Subject, Wanted
from interp.tasks.task import Task, generator, made


def turned(row: Row) -> Row:
    """The same question with the wrong answer for the right one."""
    return replace(row, answers=row.wrong, wrong=row.answers)


@generator
def half_right(model: Host | None = None, n: int = 64, *, seed: int = 0, split: str = "train", every: int = 2) -> Task:
    """IOI in which of `every` held-out rows one has its answers turned around."""
    rows = tasks.ioi(model, n=n, seed=seed, split=split).rows  # type: ignore[arg-type]
    if split == "heldout":
        rows = tuple(turned(row) if i % every == 0 else row for i, row in enumerate(rows))
    return made("half_right", model, rows, options={"n": n, "seed": seed, "every": every})


@generator
def same_sides(model: Host | None = None, n: int = 64, *, seed: int = 0, split: str = "train") -> Task:
    """IOI in which half of the rows are turned around, so that clean and corrupt are alike on average."""
    rows = tasks.ioi(model, n=n, seed=seed, split=split, corruption="flip").rows  # type: ignore[arg-type]
    return made("same_sides", model, [turned(r) if i % 4 < 2 else r for i, r in enumerate(rows)], options={"n": n})


def subject(task: Task) -> Subject:
    return Subject(model("ioi"), "zoo:ioi", task, Wanted())


def metric(task: Task, side: str) -> torch.Tensor:
    """The metric of one side, all rows at once."""
    x = getattr(task, side)
    return task.metric(model("ioi").run(x)["logits"], x).double()


def test_as_many_prompts_as_the_gap_needs() -> None:
    task = tasks.ioi(model("ioi"), n=64)
    chosen = choose(task, auto=True)
    count = chosen["train"]["rows"]
    gaps = (metric(task, "clean") - metric(task, "corrupt"))[:16]
    needed = float((gaps.std() / gaps.mean() / NEAR) ** 2)
    assert count == max(16, -(-int(needed) // 8) * 8)
    assert choose(task, auto=False)["train"]["rows"] == 64
    some = task.take(range(count))
    assert chosen["train"]["gap"] == pytest.approx(
        float((metric(some, "clean") - metric(some, "corrupt")).mean()), rel=1e-5
    )
    assert chosen["train"]["low"] < chosen["train"]["gap"] < chosen["train"]["high"]


def test_held_out_prompts_are_those_that_are_answered_right() -> None:
    task = half_right(model("ioi"), n=8)
    chosen = choose(task, auto=False)
    held = chosen["heldout"]
    assert held["rows"] == len(held["kept"]) == FEW
    assert held["tried"] > FEW
    assert 0.2 < held["accuracy"] < 0.8
    judged = subject(task).on(chosen).heldout
    assert all(judged.right())
    assert len(judged) == FEW
    assert not held["why"]


def test_too_few_right_answers_judge_nothing_and_the_report_says_so(tmp_path: Path) -> None:
    task = half_right(model("ioi"), n=8, every=1)
    made = interp.report(model("ioi"), task=task, out=tmp_path, name="zoo:ioi", **SMALL)
    said = " ".join(made.warnings)
    assert "Nothing is judged on held-out prompts: the model answers" in said
    assert "the model does the task: no" in said
    assert "held-out prompts lose" not in made.finding
    assert not (tmp_path / "steps" / "circuit.json").exists()
    assert not (tmp_path / "steps" / "ablation-text.json").exists()
    assert "has the largest effect by patch" in made.finding


def test_a_task_that_the_model_cannot_do_is_said_first(tmp_path: Path) -> None:
    task = same_sides(model("ioi"), n=16)
    gaps = metric(task, "clean") - metric(task, "corrupt")
    assert abs(float(gaps.mean())) < float(gaps.std()) / 4
    made = interp.report(model("ioi"), task=task, out=tmp_path, name="zoo:ioi", **SMALL)
    assert made.finding.startswith(
        "Nothing can be said about heads: on 16 prompts of same_sides the model does not tell"
    )
    assert "of the gap" not in made.finding
    lines = {line["name"]: line["ok"] for line in json.loads((tmp_path / "run.json").read_text())["checks"]}
    assert lines["metric of clean and corrupt differ"] is False
    assert not (tmp_path / "steps" / "circuit.json").exists()


def test_a_gap_is_told_apart_by_its_interval() -> None:
    assert told_apart({"gap": 1.0, "low": 0.2, "high": 2.0})
    assert not told_apart({"gap": 0.02, "low": -0.1, "high": 0.15})
    assert not told_apart({"gap": 0.0, "low": 0.0, "high": 0.0})
    assert told_apart({"gap": -1.0, "low": None, "high": None})


def test_one_prompt_is_enough_for_a_report_and_its_held_out_part_is_larger(tmp_path: Path) -> None:
    made = interp.report(model("ioi"), task="ioi", n=1, out=tmp_path, name="zoo:ioi", circuit=False, **SMALL)
    chosen: dict[str, Any] = json.loads((tmp_path / "steps" / "prompts.json").read_text())
    assert chosen["train"]["rows"] == 1
    assert chosen["heldout"]["rows"] == FEW
    assert any("At most 1 prompt" in line for line in made.warnings)


def test_rows_are_looked_at_once() -> None:
    task = tasks.ioi(model("ioi"), n=40)
    counted: list[int] = []
    hook = model("ioi").module.register_forward_pre_hook(lambda *_: counted.append(1))
    seen = Sides()
    seen.look(task, 16)
    seen.look(task, 40)
    hook.remove()
    assert len(seen.right) == 40
    assert len(counted) == 4
    assert tuple(seen.right) == task.right()
