"""A report is whole, says what is true, survives being killed at any point, and is the same twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from reported import GATE, SMALL, contents, gate, model

import interp
from interp.cli import main
from interp.heads.rows import read_rows
from interp.hooks.errors import BudgetError, CheckFailed
from interp.loading.task_named import task_named
from interp.papers import PAPERS, bibtex
from interp.planted.probes import probe_task
from interp.records import every, numbers_of, variants
from interp.reporting.drawing.tables import card, latex
from interp.reporting.experiment import experiment
from interp.reporting.sections import sections
from interp.reporting.sections.baselines import ablation
from interp.reporting.steps.steps import FILES, Steps
from interp.reporting.steps.subject import Subject, Wanted
from interp.results.figures.canvas import SCALE, Canvas


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One report from beginning to end."""
    folder = tmp_path_factory.mktemp("report") / "whole"
    return interp.report(model("planted-backup"), task=gate(), out=folder, name=GATE, **SMALL)


def test_the_report_ranks_the_planted_heads_first_and_verified(tmp_path: Path) -> None:
    task = probe_task("planted-decoder", model=model("planted-decoder"))
    planted = interp.report(model("planted-decoder"), task=task, out=tmp_path, name="d", circuit=False, **SMALL)
    assert set(planted.top(2)["site"]) == {"L0.H1", "L1.H4"}
    top = planted.top(12)
    assert top["verified"].all()
    assert (top["exact"] == top["estimate"]).all()
    assert (top["estimate"].iloc[2:] == 0).all()
    assert "L0.H1" in planted.finding
    estimates = planted.rows[planted.rows["method"] == "atp"]
    exact = dict(zip(top["site"], top["estimate"], strict=True))
    assert estimates["exact"].tolist() == [exact[site] for site in estimates["site"]]
    assert estimates["verified"].all()


def test_heads_that_are_only_estimated_are_checked_at_the_top(tmp_path: Path) -> None:
    made = interp.report(
        model("planted-decoder"), task=probe_task("planted-decoder", model=model("planted-decoder")), out=tmp_path,
        name="d", circuit=False, exact=False, top=3, **SMALL,
    )  # fmt: skip
    ranked = made.top(12)
    assert set(ranked["method"]) == {"relp"}
    assert ranked["verified"].tolist() == [True] * 3 + [False] * 9
    exact = ranked.set_index("site")["exact"]
    patched = made.rows[(made.rows["method"] == "patch") & (made.rows["direction"] == "denoise")]
    assert len(patched) == 3
    assert all(exact[site] == value for site, value in zip(patched["site"], patched["estimate"], strict=True))
    assert any("3 of 12 were checked by exact patching" in line for line in made.warnings)


def test_every_file_is_there_and_can_be_read(whole: Any) -> None:
    folder = whole.folder
    assert all((folder / name).is_file() for name in (*FILES, "circuit.json"))
    pandas.testing.assert_frame_equal(read_rows(folder), whole.rows)
    assert len(interp.Circuit.load(folder / "circuit.json")) > 0
    for drawing in (folder / "figures").glob("*.svg"):
        xml.parse(drawing)
    assert {file.stem for file in (folder / "figures").glob("*.png")} >= {
        "map-patch-denoise-text",
        "heads",
        "agreement",
    }
    effects = interp.open(folder / "results" / "patch-text")
    rows = whole.rows[(whole.rows["method"] == "patch") & (whole.rows["direction"] == "denoise")]
    assert dict(zip(rows["site"] + ".z", rows["estimate"], strict=True)) == pytest.approx(
        dict(zip(effects.sites, effects.mean.tolist(), strict=True)), rel=1e-5
    )
    run = json.loads((folder / "run.json").read_text())
    assert run["finding"] == whole.finding
    assert run["plan"]["versions"]["torch"] == torch.__version__
    assert all(name in run["seconds"] for name in ("checks", "score-patch-text", "circuit"))
    page = (folder / "report.html").read_text()
    assert "default-src 'none'" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert len(page) < 3e6
    assert r"\begin{tabular}" in (folder / "heads.tex").read_text()
    assert "2309.16042" in (folder / "references.bib").read_text()


class Killed(BaseException):
    """Stands for any sudden end between two steps."""


def record(folder: Path) -> dict[str, Any]:
    """What `run.json` says but for the times."""
    held: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return {key: value for key, value in held.items() if key not in TIMED}


TIMED = (
    "started", "finished", "seconds", "processor seconds", "seconds in all", "first page", "memory_before_mb",
    "peak_memory_mb", "cost",
)  # fmt: skip


def test_a_report_stopped_after_each_of_its_steps_in_turn_ends_with_the_same_bytes(whole: Any, tmp_path: Path) -> None:
    names: list[str] = []

    def stop(line: str) -> None:
        if not line.startswith("cost") and "done before" not in line:
            names.append(line.partition(":")[0])
            raise Killed

    how: dict[str, Any] = {"task": gate(), "out": tmp_path / "killed", "name": GATE, "say": stop, **SMALL}
    for _ in range(30):
        try:
            interp.report(model("planted-backup"), resume=bool(names), **how)
            break
        except Killed:
            assert not (tmp_path / "killed" / "run.json").exists()
    assert len(names) == len(set(names)) > 8
    assert contents(tmp_path / "killed") == contents(whole.folder)
    assert record(tmp_path / "killed") == record(whole.folder)


def test_a_report_killed_in_another_process_goes_on_here(whole: Any, tmp_path: Path) -> None:
    call = ["report", GATE, "--out", str(tmp_path / "a"), "--draws", "2", "--random", "3", "--examples", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "interp", *call], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob("a/steps/score-*.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "a" / "steps" / "plan.json").exists()
    assert main([*call, "--resume"]) == 0
    assert contents(tmp_path / "a") == contents(whole.folder)
    assert record(tmp_path / "a") == record(whole.folder)


def test_a_directory_is_never_taken_over(tmp_path: Path) -> None:
    how: dict[str, Any] = {"task": gate(), "circuit": False, "name": "b", **SMALL}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(interp.InterpError, match="not empty"):
        interp.report(model("planted-backup"), out=tmp_path / "mine", **how)
    with pytest.raises(interp.InterpError, match="cannot be resumed"):
        interp.report(model("planted-backup"), out=tmp_path / "mine", resume=True, **how)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    out = tmp_path / "own"
    interp.report(model("planted-backup"), out=out, **how)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(interp.InterpError, match="resume"):
        interp.report(model("planted-backup"), out=out, **how)
    with pytest.raises(interp.InterpError, match="another report: its seed"):
        interp.report(model("planted-backup"), out=out, resume=True, seed=1, **how)
    interp.report(model("planted-backup"), out=out, overwrite=True, **how)
    assert (out / "notes.txt").read_text() == "mine"


def test_what_a_kill_left_half_written_is_taken_away_and_the_plan_names_the_model(tmp_path: Path) -> None:
    how: dict[str, Any] = {"task": gate(), "out": tmp_path, "circuit": False, **SMALL}
    interp.report(model("planted-backup"), name="mine", **how)
    before = contents(tmp_path)
    for name in ("heads.csv.part17", "steps/roles.json.part17", "figures/heads.svg.part17"):
        (tmp_path / name).write_text("half")
    with pytest.raises(interp.InterpError, match="its model is 'mine', this one's 'other'"):
        interp.report(model("planted-backup"), name="other", resume=True, **how)
    assert record(tmp_path)["plan"]["model"] == "mine"
    interp.report(model("planted-backup"), name="mine", resume=True, **how)
    assert contents(tmp_path) == before


def test_a_step_is_done_once_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    steps = Steps(tmp_path, {"model": "a"}, resume=False, overwrite=False)
    counted: list[int] = []
    for _ in range(2):
        answer = steps.do("one", lambda: counted.append(1) or {"x": 0.1 + 0.2, "y": float("inf")})
    assert answer == {"x": 0.1 + 0.2, "y": float("inf")}
    assert len(counted) == 1
    with pytest.raises(ZeroDivisionError):
        steps.do("two", lambda: {"x": 1 / 0})

    def refused() -> dict[str, Any]:
        raise interp.InterpError("not here")

    assert steps.attempt("three", refused) == {"refused": "three: not here"}
    assert sorted(file.name for file in (tmp_path / "steps").iterdir()) == ["one.json", "plan.json", "three.json"]


def refusing(error: Exception) -> Any:
    def work() -> dict[str, Any]:
        raise error

    return work


def test_want_of_memory_is_tried_again_and_what_came_after_it_with_it(tmp_path: Path) -> None:
    done: list[str] = []

    def report(second: Any, *, resume: bool) -> list[dict[str, Any]]:
        steps = Steps(tmp_path, {"model": "a"}, resume=resume, overwrite=False)

        def work(name: str) -> Any:
            return lambda: done.append(name) or {"x": len(done)}

        return [
            steps.do("one", work("one")),
            steps.attempt("two", second or work("two")),
            steps.do("three", work("three")),
        ]

    first = report(refusing(BudgetError("no room")), resume=False)
    assert first[1]["refused"].startswith("two: no room")
    assert "resume" in first[1]["refused"]
    again = report(refusing(BudgetError("still no room")), resume=True)
    assert again[1]["refused"].startswith("two: still no room")
    assert done == ["one", "three"]
    assert [again[0], again[2]] == [first[0], first[2]]
    third = report(None, resume=True)
    assert done == ["one", "three", "two", "three"]
    assert third == [first[0], {"x": 3}, {"x": 4}]
    assert report(refusing(ZeroDivisionError()), resume=True) == third
    assert len(done) == 4


def test_a_self_check_that_fails_stops_the_report_and_is_no_answer(tmp_path: Path) -> None:
    for resume in (False, True):
        steps = Steps(tmp_path, {"model": "a"}, resume=resume, overwrite=False)
        with pytest.raises(CheckFailed, match=r"two: off by 3\."):
            steps.attempt("two", refusing(CheckFailed("off by 3.")))
        assert [file.name for file in (tmp_path / "steps").iterdir()] == ["plan.json"]


def test_a_report_short_of_memory_says_so_and_is_whole_once_there_is_some(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "whole"
    asked: dict[str, Any] = {"task": gate(), "out": folder, "name": GATE, **SMALL}
    with monkeypatch.context() as short:
        short.setattr("interp.hooks.drive.sweep.free_memory", lambda: 1000)
        made = interp.report(model("planted-backup"), **asked)
    assert any("score-patch-text: recording passed the budget" in line for line in made.warnings)
    assert "patch" not in set(made.rows["method"])
    again = interp.report(model("planted-backup"), **asked, resume=True)
    assert not any("budget" in line for line in again.warnings)
    assert contents(folder) == contents(whole.folder)
    assert record(folder) == record(whole.folder)


def test_a_model_that_stops_being_deterministic_stops_its_report(whole: Any, tmp_path: Path) -> None:
    m, folder = interp.load("zoo:planted-backup"), tmp_path / "whole"
    noisy: list[Any] = []

    def say(line: str) -> None:
        if line.startswith("checks:"):
            block: Any = m.module.get_submodule(m.anatomy.tower(None, text="").layers[0].block)
            noisy.append(block.register_forward_hook(lambda _, args, out: _louder(out)))

    asked: dict[str, Any] = {"task": probe_task("planted-backup", model=m), "out": folder, "name": GATE, **SMALL}
    with pytest.raises(CheckFailed, match="score-relp-text"):
        interp.report(m, **asked, say=say)
    assert sorted(file.stem for file in (folder / "steps").glob("*.json")) == ["budget", "checks", "plan", "prompts"]
    assert not (folder / "run.json").exists()
    noisy[0].remove()
    interp.report(m, **asked, resume=True)
    assert contents(folder) == contents(whole.folder)


def _louder(out: Any) -> Any:
    """A block's output, shaken."""
    if isinstance(out, tuple):
        return (_louder(out[0]), *out[1:])
    return out + 0.1 * torch.randn_like(out)


def test_ablation_is_what_patching_those_heads_together_does() -> None:
    m = model("planted-decoder")
    task = probe_task("planted-decoder", model=m)
    effects = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
    found = ablation(Subject(m, "x", task, Wanted(draws=3)), effects, "text")
    tape = m.run(task.corrupt, record="L*.z")
    gap = float((task.metric(m.run(task.corrupt)["logits"], task.corrupt)
                 - task.metric(m.run(task.clean)["logits"], task.clean)).mean())  # fmt: skip
    for row in (row for row in found["rows"] if row["name"] == "found"):
        edits = []
        for head in found["found"][: row["k"]]:
            layer, number = head.split(".H")
            value = tape[f"{layer}.z"][:, :, int(number) : int(number) + 1]
            edits.append(interp.Set(f"{head}.z", value=value))
        moved = task.metric(m.run(task.clean, edits=edits)["logits"], task.clean)
        plain = task.metric(m.run(task.clean)["logits"], task.clean)
        assert row["share"] == pytest.approx(float((moved - plain).mean()) / gap, abs=1e-4)
    assert {row["name"] for row in found["rows"]} == {"found", "magnitude", "random"}


def test_a_picture_model_shows_its_pictures_and_a_method_that_does_not_fit_says_why(tmp_path: Path) -> None:
    m = model("planted-lvlm")
    made = interp.report(
        m, task=probe_task("planted-lvlm", "picture", model=m), out=tmp_path, name="zoo:planted-lvlm", circuit=False,
        **SMALL,
    )  # fmt: skip
    assert made.top(1)["site"].item() == "text.L1.H1"
    assert set(made.rows["tower"]) == {"text", "vision"}
    seen = json.loads((tmp_path / "steps" / "patterns.json").read_text())
    assert {image["tower"] for image in seen["images"]} == {"text", "vision"}
    for image in seen["images"]:
        rows, cols = image["grid"]
        assert len(image["positions"]) == rows * cols
        roles = seen["examples"][image["example"]]["roles"]
        assert {roles[p] for p in image["positions"] if p is not None} == {"image"}
    total = sum(len(block["sites"]) for block in seen["blocks"])
    assert total == sum(layer.heads for tower in m.towers.values() for layer in tower.layers)


def test_results_that_one_has_become_a_report_without_a_task(tmp_path: Path) -> None:
    m = model("planted-decoder")
    task = probe_task("planted-decoder", model=m)
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "sites": "L*.H*.z"}
    given = [interp.patch(m, **how), interp.attribute(m, method="atp", verify=0, **how)]
    made = interp.report(m, given, out=tmp_path, name="held")
    assert set(made.rows["method"]) == {"patch", "atp"}
    assert set(made.rows["split"]) == {"given"}
    assert made.top(2)["site"].tolist() == ["L0.H1", "L1.H4"]
    with pytest.raises(interp.InterpError, match="task="):
        interp.report(m, out=tmp_path / "none")
    with pytest.raises(interp.InterpError, match="has its rows already"):
        interp.report(m, task=task, n=4, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tasks_are_named_or_read_or_refused(tmp_path: Path) -> None:
    m = model("ioi")
    assert (
        task_named(m, None, model_name="zoo:ioi", n=3, seed=1, corruption="names").rows[0].meta["corruption"] == "names"
    )
    file = task_named(m, "ioi", n=2).save(tmp_path / "rows.jsonl")
    assert len(task_named(m, str(file))) == 2
    for name, said in (("iio", "Did you mean 'ioi'"), ("gone.jsonl", "no file"), (None, "say which task")):
        with pytest.raises(interp.InterpError, match=said):
            task_named(m, name, model_name="./mine")
    with pytest.raises(interp.InterpError, match="no option 'corruption'"):
        task_named(m, "induction", corruption="names")


def test_untrusted_words_are_harmless_in_every_file() -> None:
    bad = "<img src=x onerror=alert(1)>\n</script> \u202e & 50% of $x_{1}^2$ #1 ~ \\"
    drawn = Canvas(100, 50, bad, bad)
    drawn.text(5, 5, bad)
    drawn.rect(1, 2, 3, 4, fill="#ffffff")
    drawn.line([(0, 0), (5, 5)], dash="2 2")
    drawn.dot(3, 3)
    root = xml.fromstring(drawn.svg())
    assert {element.tag.rpartition("}")[2] for element in root} == {
        "title",
        "desc",
        "rect",
        "text",
        "polyline",
        "circle",
    }
    assert drawn.png()[:8] == b"\x89PNG\r\n\x1a\n"
    row = {"site": bad, "estimate": 1.0, "low": float("nan"), "high": 2.0, "exact": 1.0, "label": bad}
    line = latex([row], bad).splitlines()[9]
    assert line.count(" & ") == 5
    assert r"50\% of \$x\_\{1\}\textasciicircum{}2\$" in line
    page = card({"base_model": bad, "tags": [bad]}, bad, [bad], {"a": "b"})
    head, words = page.split("---\n")[1:3]
    import yaml

    assert yaml.safe_load(head) == {"base_model": bad, "tags": [bad]}
    assert "<" not in words


def test_a_canvas_is_the_same_size_in_both_forms() -> None:
    from io import BytesIO

    from PIL import Image

    drawn = Canvas(120, 40, "a", "b")
    assert Image.open(BytesIO(drawn.png())).size == (120 * SCALE, 40 * SCALE)
    assert xml.fromstring(drawn.svg()).attrib["viewBox"] == "0 0 120 40"


def test_every_paper_is_cited_by_a_method_and_has_an_arxiv_number() -> None:
    choices = [one for method in every() for one in variants(method.name).values()]
    behind = {number for record in (*every(), *choices) for number in numbers_of(record)}
    behind |= {number for section in sections() for label in section.labels.values() for number in label.papers}
    assert behind == set(PAPERS)
    entries = bibtex(PAPERS.values())
    assert entries.count("@misc{") == len({paper.key for paper in PAPERS.values()}) == len(PAPERS)
    for paper in PAPERS.values():
        assert paper.title in entries
        assert int("20" + paper.number[:2]) == paper.year


def test_a_grid_is_run_once_and_says_how_stable_its_heads_are(tmp_path: Path) -> None:
    grid = {
        "models": [GATE], "seeds": [0, 1], "corruptions": [None, "names"],
        "report": {"circuit": False, "draws": 1, "examples": 1},
    }  # fmt: skip
    found = experiment(grid, out=tmp_path)
    assert [cell["seed"] for cell in found.cells] == [0, 1]
    assert len(found.left_out) == 2
    assert all("without corruption=" in line for line in found.left_out)
    row = found.stability.iloc[0]
    assert row["spearman"] == pytest.approx(1.0)  # the probe is the same whatever the seed
    assert row["overlap"] == 1
    assert (tmp_path / "stability.csv").is_file()
    before = contents(tmp_path)
    again = experiment(grid, out=tmp_path)
    assert again.finding == found.finding
    changed = [name for name, data in contents(tmp_path).items() if before.get(name) != data]
    assert all(name.endswith("run.json") for name in changed)
    for wrong, said in (({"models": []}, "at least one"), ({"model": ["a"]}, "no 'model'"),
                        ({**grid, "report": {"m": 1}}, "report has no 'm'")):  # fmt: skip
        with pytest.raises(interp.InterpError, match=said):
            experiment(wrong, out=tmp_path / "wrong")
