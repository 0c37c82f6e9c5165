"""The command line does what its help says and answers with the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.cli import main
from interp.families import tiny


@pytest.mark.parametrize("command", [[], ["demo"], ["doctor"], ["zoo"]])
def test_help_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "interp" in printed
    assert not command or f"interp {command[0]}" in printed.partition("example")[2]


def test_demo_finds_the_planted_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert "The head that matters most is L0.H1" in printed
    assert "pass" in printed
    assert "fail" not in printed


def test_doctor_of_families_prints_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--families", "plain", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["family"] == "plain"
    assert row["checks"]["zero"] == "pass"


def test_doctor_of_a_local_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("llama").save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 0
    assert "residual" in capsys.readouterr().out


def test_a_request_that_cannot_be_met_exits_with_2_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert main(["doctor"]) == 2
