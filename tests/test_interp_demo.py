"""The demo recovers every planted head, and would say so if it did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interp.cli import main
from interp.demo import PLANTED, Demo, demo
from interp.planted import key
from interp.report import Report


def test_the_demo_recovers_what_was_planted_and_writes_its_report(tmp_path: Path) -> None:
    found = demo(tmp_path / "demo", n=2, random=1)
    assert found.recovered
    printed = found.text
    probes = [probe for name in PLANTED for probe in key(name).probes]
    assert f"{len(probes)} of {len(probes)} probes recover exactly the planted heads" in printed
    for probe in probes:
        (line,) = (line for line in printed.splitlines() if f" {probe.name} " in line and probe.heads[0] in line)
        assert line.count(", ".join(probe.heads)) == 2
    assert str(tmp_path / "demo" / "report.html") in printed
    assert (tmp_path / "demo" / "report.html").stat().st_size < 3e6
    assert "Faithfulness" in printed


@pytest.mark.slow
def test_the_command_is_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert str(tmp_path / "demo" / "report.html") in capsys.readouterr().out


def test_a_head_that_is_missing_or_too_many_is_told(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    made = Report(tmp_path, None, "finding", ())
    right = Demo((("planted-vit", "mark", ("L1.H2",), ("L1.H2",)),), made, "circuit")
    assert right.recovered
    for found in ((), ("L1.H2", "L0.H0")):
        wrong = replace(right, rows=((*right.rows[0][:3], found),))
        assert not wrong.recovered
        assert "0 of 1" in wrong.text
        assert "differs" in wrong.text
