"""The demo recovers every planted head, and would say so if it did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interp.cli import main
from interp.commands.demo import PLANTED, Demo, planted
from interp.planted import key
from interp.reporting.report import Report


@pytest.mark.parametrize("name", PLANTED)
def test_every_probe_recovers_exactly_the_heads_of_its_key(name: str) -> None:
    rows = planted(name)
    assert [row[1] for row in rows] == [probe.name for probe in key(name).probes]
    for (_, _, expected, found), probe in zip(rows, key(name).probes, strict=True):
        assert set(found) == set(expected) == set(probe.heads)


@pytest.mark.slow
def test_the_command_prints_what_was_recovered_and_where_its_report_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    probes = [probe for name in PLANTED for probe in key(name).probes]
    assert f"{len(probes)} of {len(probes)} probes recover exactly the planted heads" in printed
    assert str(tmp_path / "demo" / "report.html") in printed
    assert (tmp_path / "demo" / "report.html").stat().st_size < 3e6
    assert "Faithfulness" in printed


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
