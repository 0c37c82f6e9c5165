"""A grid tells a cell that does not fit from one whose self-check failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reported import GATE

import interp
from interp.cli import main
from interp.hooks.errors import CheckFailed
from interp.reporting.experiment import experiment

GRID: dict[str, Any] = {"models": [GATE], "seeds": [0, 1], "report": {"circuit": False, "draws": 1, "examples": 1}}


def shaken(out: Any) -> Any:
    """A block's output, with noise."""
    return (shaken(out[0]), *out[1:]) if isinstance(out, tuple) else out + 0.1 * torch.randn_like(out)


class Noisy:
    """A model that is shaken from a report's estimates on, until that report has failed."""

    def __init__(self, *, forever: bool) -> None:
        self.model, self.forever = interp.load(GATE), forever
        self.hooks: list[Any] = []

    def say(self, line: str) -> None:
        if line.startswith("score-direct-effect:") and (self.forever or not self.hooks):
            block: Any = self.model.module.get_submodule(self.model.anatomy.tower(None, text="").layers[0].block)
            self.hooks.append(block.register_forward_hook(lambda _, args, out: shaken(out)))
        if "FAILED" in line:
            self.hooks[-1].remove()


def test_a_failed_self_check_is_a_failure_and_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = Noisy(forever=False)
    monkeypatch.setattr(sys.modules[experiment.__module__], "opened", lambda name, **how: noisy.model)
    found = experiment({**GRID, "corruptions": [None, "names"]}, out=tmp_path, say=noisy.say)
    assert len(found.failed) == 1
    assert "score-patch-text" in found.failed[0]
    assert len(found.left_out) == 2
    assert all("without corruption=" in line for line in found.left_out)
    assert [cell["seed"] for cell in found.cells] == [1]
    assert found.finding.startswith("1 of 2 reports failed a self-check; ")
    assert "\nFAILED: " in repr(found)


def test_a_grid_of_failures_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = Noisy(forever=True)
    monkeypatch.setattr(sys.modules[experiment.__module__], "opened", lambda name, **how: noisy.model)
    with pytest.raises(CheckFailed, match="score-patch-text"):
        experiment({**GRID, "seeds": [0]}, out=tmp_path, say=noisy.say)


def test_the_command_ends_with_an_error_where_a_check_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = Noisy(forever=False)
    monkeypatch.setattr(sys.modules[experiment.__module__], "opened", lambda name, **how: noisy.model)
    monkeypatch.setattr("interp.commands.options.say", noisy.say)
    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    assert main(["run", str(tmp_path / "grid.json"), "--out", str(tmp_path / "grid")]) == 1
    assert "FAILED: " in capsys.readouterr().out
