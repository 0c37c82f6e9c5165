"""What is known beforehand is said beforehand: a place that cannot be written to, a name that is nearly right, a model
that a task is not for, and very many prompts; only a terminal is told how far work is."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

import interp
from interp.cli import build, main
from interp.commands import opening, places
from interp.commands.opening import MANY, announced, counted, huge
from interp.commands.options import note
from interp.cost import Cost
from interp.loading.task_named import task_named


@pytest.fixture(scope="module")
def ioi() -> interp.Model:
    return interp.load("zoo:ioi")


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Standard error is a terminal of 100 columns; what was written to it."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.set_blocking(ours, False)

    def written() -> str:
        sys.stderr.flush()
        try:
            return os.read(ours, 1 << 16).decode()
        except BlockingIOError:
            return ""

    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):
        yield written
    os.close(ours)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command refuses with."""
    assert main(argv) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.startswith("cost:")]
    return line


def test_a_place_is_tried_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "held").write_text("")
    file, full = str(tmp_path / "file"), str(tmp_path / "full")
    (tmp_path / "begun" / "steps").mkdir(parents=True)
    (tmp_path / "begun" / "steps" / "plan.json").write_text("{}")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    for argv, said in {
        ("patch", "zoo:none", "--out", file): "is a file, not a directory",
        ("report", "zoo:none", "--out", f"{file}/deep/er"): "cannot be written to",
        ("attribute", "zoo:none", "--out", str(tmp_path / "nowhere")): "cannot be written to",
        ("report", "zoo:none", "--out", f"{tmp_path}/begun"): "already holds a report",
        ("patch", "zoo:none", "--out", "/proc/none/x"): "cannot be written to (/proc",
        ("patch", "zoo:none", "--out", "x" * 300): "File name too long",
        ("patch", "zoo:none", "--out", ""): "--out is empty",
        ("prune", "zoo:none", "--out", full): "is not empty",
        ("heads", "zoo:none", "--out", f"{tmp_path}/rows.txt"): "written as .csv, .parquet or .json",
        ("sinks", "zoo:none", "--out", f"{file}/rows.csv"): "cannot be written to",
        ("diff", full, full, "--out", full): "is a directory",
        ("run", "none.yaml", "--out", file): "is a file",
        ("demo", "--out", file): "is a file",
    }.items():
        assert said in refused(capsys, *argv), argv
    assert sorted(tmp_path.rglob("*")) == before


def test_trying_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    places.checked(Namespace(out=str(tmp_path / "new" / "er"), out_ends=None))
    places.checked(Namespace(out=str(tmp_path / "new" / "rows.csv"), out_ends=places.TABLES))
    assert not list(tmp_path.iterdir())


def test_every_command_that_writes_has_its_place_tried() -> None:
    (commands,) = (action.choices for action in build()._actions if isinstance(action.choices, dict))
    assert isinstance(commands, dict)
    writing = {name: one for name, one in commands.items() if any(a.dest == "out" for a in one._actions)}
    assert len(writing) >= 9
    assert all("out_ends" in one._defaults for one in writing.values())


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["reprot"], "report"),
        (["compeltion", "bash"], "completion"),
        (["patch", "zoo:ioi", "--sights", "a"], "--sites"),
        (["patch", "zoo:ioi", "--tsak=ioi"], "--task"),
    ],
)
def test_a_command_or_flag_that_is_nearly_right(
    argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert f"Did you mean {meant!r}?" in capsys.readouterr().err


def test_a_model_or_file_that_is_nearly_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my-checkpoint").mkdir()
    (tmp_path / "prompts.txt").write_text("a\n")
    for argv, meant in {
        ("patch", "zoo/ioi", "--offline"): "'zoo:ioi'",
        ("patch", "shapes_vit", "--offline"): "'zoo:shapes-vit'",
        ("patch", str(tmp_path / "my-chekpoint")): "'my-checkpoint'",
        ("sinks", "zoo:ioi", "--file", str(tmp_path / "promtps.txt")): "'prompts.txt'",
        ("patch", "zoo:planted-backup", "--task", "baseline"): "expected a probe",
        ("patch", "zoo:planted-decoder", "--task", "inducton"): "'induction'",
        ("patch", "package:pytset"): "'pytest'",
        ("patch", "zoo:ioi", "--task", "induktion"): "'induction'",
    }.items():
        assert meant in refused(capsys, *argv), argv
    assert "Did you mean" not in refused(capsys, "patch", "nobody/nothing", "--offline")


def test_a_task_for_another_model_says_which(ioi: interp.Model, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "patch", "zoo:shapes-vit", "--task", "ioi")
    assert line.endswith("The task 'ioi' has models of its own: zoo:ioi. zoo:shapes-vit was made for --task shapes.")
    with pytest.raises(interp.InterpError, match=r"zoo:shapes-vit, zoo:shapes-vit-registers\.$"):
        task_named(ioi, "shapes", model_name="./mine")
    with pytest.raises(interp.InterpError) as wrong:
        task_named(ioi, "ioi", model_name="./mine", n=0)
    assert "models of its own" not in str(wrong.value)


def test_very_many_prompts_are_said_to_be_many(ioi: interp.Model, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def made(n: int) -> interp.Task:
        asked.append(n)
        return interp.tasks.ioi(ioi, n=n)

    announced(ioi, made, MANY, 26)
    assert (asked, capsys.readouterr().err) == ([], "")
    announced(ioi, made, 10**6, 26)
    assert max(asked) < 10
    said = capsys.readouterr().err
    assert said.startswith("-n 1,000,000 is a lot. cost: about 26 forward passes of 1,000,000 prompts")
    announced(ioi, lambda n: interp.tasks.ioi(ioi, n=8), 10**6, 26)  # a file's rows are as many as they are
    assert capsys.readouterr().err == ""


def test_what_many_take_is_what_a_few_took_times_their_number() -> None:
    line = huge(Cost(26, 4, 17, 2.0, 0.01), 10**6, 10**6)
    assert "500,000 MB" in line
    assert f"{26 * 0.01 * 10**6 / 4 / 3600:.1f} h (one pass took 2.5e+03 s)" in line


def test_a_terminal_is_told_what_is_loaded() -> None:
    with terminal() as written:
        assert main(["patch", "zoo:none"]) == 2
        assert written().startswith("loading zoo:none (torch and transformers first) ...")


def test_a_terminal_sees_passes_their_rate_and_the_time_left(
    ioi: interp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal() as written:
        with counted(ioi, 3, "heads"):
            ioi.run([[1, 2]])
        assert written() == ""  # less than two seconds
        monkeypatch.setattr(opening, "SOON", 0.01)
        with counted(ioi, 3, "heads"):
            for _ in range(2):
                time.sleep(0.11)
                ioi.run([[1, 2]])
        seen = written()
    assert all(part in seen for part in ("heads", "1/3 [", "passes/s", "<00:00")), seen
    assert not ioi.module._forward_hooks


def test_a_file_is_told_nothing(ioi: interp.Model, capfd: pytest.CaptureFixture[str]) -> None:
    note("loading")
    with counted(ioi, 3, "heads"):
        assert not ioi.module._forward_hooks
    assert capfd.readouterr().err == ""
