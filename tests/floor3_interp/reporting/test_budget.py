"""What a report may take is planned before the work, kept on going on, and what was left out is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reported import GATE, SMALL, contents, gate, model

import interp
from interp.hooks.sealed import sealed
from interp.reporting.steps.budget import FREE, PASSES, Budget, asked, granted


def test_a_budget_is_passes_or_minutes() -> None:
    assert asked(None) == (None, None)
    assert asked(250) == (250.0, None)
    assert asked("250") == (250.0, None)
    assert [asked(text) for text in ("10 min", "10m", "1.5 minutes")] == [(None, 10.0), (None, 10.0), (None, 1.5)]
    for wrong in (0, -3, "soon", "10 hours", float("inf"), float("nan")):
        with pytest.raises(interp.InterpError, match="number of forward passes"):
            asked(wrong)
    assert granted(FREE) == PASSES
    assert granted(FREE / 1e4) == 1e4


def test_what_is_left_goes_down_and_what_was_cut_is_said() -> None:
    budget = Budget(100.0)
    budget.must("checks", 10)
    assert budget.whole("exact", 40, "Exact patching", share=0.5)
    assert not budget.whole("roles", 60, "Kinds of heads")
    assert budget.some("random", 2.0, 100, "Random circuits", base=10, step="circuit") == 20
    assert budget.some("parts", 5.0, 10, "Parts", least=2) == 0
    assert budget.amounts == {"exact": 1, "roles": 0, "random": 20, "parts": 0}
    assert budget.planned == {"checks": 10, "exact": 40, "circuit": 50}
    assert budget.left == 0
    assert [line.split(" would")[0].split(":")[0] for line in budget.left_out] == [
        "Kinds of heads", "Random circuits", "Parts",
    ]  # fmt: skip
    assert "20 of 100" in budget.left_out[1]
    more = Budget(50.0)
    assert more.some("random", 1, 90, "Random circuits", share=0.5, had=10) == 25
    assert more.amounts == {"random": 35}
    assert more.left_out[0].startswith("Random circuits: 35 of 100; all would take about 100 passes")


def test_a_report_on_ten_passes_has_estimates_and_says_what_is_missing(tmp_path: Path) -> None:
    made = interp.report(model("planted-backup"), task=gate(), out=tmp_path, name=GATE, budget=10, **SMALL)
    assert set(made.rows["method"]) >= {"relp", "atp"}
    assert not (made.rows["method"] == "patch").any()
    said = " ".join(made.warnings)
    for part in ("Exact patching of all", "A circuit", "random heads", "more than the budget of 10"):
        assert part in said
    page = made.page.read_text()
    assert "Exact patching of all" in page
    assert "not complete" not in page
    assert made.cost is not None
    assert made.cost.budget == 10


def test_minutes_are_turned_into_passes_once(tmp_path: Path) -> None:
    class Killed(BaseException):
        """A sudden end."""

    def stop(line: str) -> None:
        if line.startswith("checks"):
            raise Killed

    how: dict[str, Any] = {"task": gate(), "out": tmp_path, "name": GATE, "budget": "1 min", **SMALL}
    with pytest.raises(Killed):
        interp.report(model("planted-backup"), say=stop, **how)
    file = tmp_path / "steps" / "budget.json"
    chosen = json.loads(file.read_text())
    assert chosen["minutes"] == 1
    chosen = {name: value for name, value in chosen.items() if name != "seal"}
    file.write_bytes(sealed({**chosen, "passes": 17}))  # as another machine would have it
    made = interp.report(model("planted-backup"), resume=True, **how)
    assert made.cost is not None
    assert made.cost.budget == 17
    with pytest.raises(interp.InterpError, match="its budget is '1 min', this one's '2 min'"):
        interp.report(model("planted-backup"), resume=True, **{**how, "budget": "2 min"})


def test_a_page_can_be_read_before_the_report_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.reporting.work.EVERY", 0.0)
    pages: dict[str, str] = {}

    def look(line: str) -> None:
        page = tmp_path / "report.html"
        if page.exists():
            pages.setdefault(line.partition(":")[0], page.read_text())

    how: dict[str, Any] = {"task": gate(), "name": GATE, **SMALL}
    made = interp.report(model("planted-backup"), out=tmp_path, say=look, **how)
    first = next(iter(pages))
    assert first == "score-patch-text"
    assert "This page is not complete. Still to come: scores, broad" in pages[first]
    assert "L0.H1" in pages[first]
    assert "not complete" not in made.page.read_text()
    run = json.loads((tmp_path / "run.json").read_text())
    assert 0 < run["first page"]["seconds"] < run["seconds in all"]
    assert run["first page"]["passes planned"] <= 40
    monkeypatch.setattr("interp.reporting.work.EVERY", 1e9)
    interp.report(model("planted-backup"), out=tmp_path / "again", **how)
    again = {name: data for name, data in contents(tmp_path).items() if not name.startswith("again/")}
    assert contents(tmp_path / "again") == again


def test_a_long_step_says_that_it_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    from interp.reporting.steps.steps import Steps

    monkeypatch.setattr("interp.reporting.steps.steps.EVERY", 0.01)
    heard, lines = Event(), []

    def say(line: str) -> None:
        lines.append(line)
        heard.set()

    steps = Steps(tmp_path, {"model": "a"}, resume=False, overwrite=False, say=say)
    steps.planned, steps.pace = {"slow": 4.0, "other": 6.0}, 2.0

    def work() -> dict[str, Any]:
        steps.tell("3 of 7")
        return {"heard": heard.wait(30)}

    assert steps.do("slow", work) == {"heard": True}
    assert lines[0].startswith("slow: ")
    assert lines[0].endswith(" s of about 8 s, 3 of 7 ...")
    assert lines[-1].endswith("(4 of about 10 passes, about 12 s left)")
