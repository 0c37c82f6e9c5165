"""Studies of the small denoiser run from the command line and end with one line of JSON that adds up."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import library
from house import ROOT

library()
FOLDER = ROOT / "experiments" / "diffusion"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(name: str, *options: str) -> Any:
        monkeypatch.setattr(sys, "argv", [name, *options])
        threads = torch.get_num_threads()
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        torch.set_num_threads(threads)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_perturbed_heads_stand_beside_random_ones_and_no_heads(ran: Any, tmp_path: Path) -> None:
    small = ("--prompts", "4", "--each", "1", "--steps", "2", "--rounds", "1", "--draws", "2")
    said = ran("softpag.py", *small, "--out", str(tmp_path))
    assert said["samples"] == 4
    assert len(said["greedy"]) == 1
    assert list(said["by_amount"]) == ["0.25", "0.5", "0.75", "1.0"]
    for one in said["by_amount"].values():
        mean, low, high = one["all"]
        assert 0 <= low <= mean <= high <= 1
        assert abs(one["random"]["share"][0] - sum(one["random"]["sets"]) / 2) < 2e-3
    assert (tmp_path / "hunt").is_dir()


def test_words_point_beside_chance_and_other_boxes(ran: Any, tmp_path: Path) -> None:
    said = ran("grounding.py", "--prompts", "6", "--each", "1", "--steps", "3", "--out", str(tmp_path))
    assert set(said["words"]) == {"a", "color", "shape", "."}
    assert 0 < said["chance"] < 1
    for word in said["words"].values():
        assert len(word["by_head"]) == 16
        assert len(word["best_head_by_step"]) == len(word["mean_map_by_step"]) == 3
        assert word["best_head_by_step"][word["step"]] == word["pointing"][0]


def test_edits_stand_beside_the_plain_run(ran: Any) -> None:
    said = ran("editing.py", "--prompts", "4", "--each", "1", "--steps", "2")
    assert set(said["taken"]) == {"all", "first_half", "second_half", "patterns"}
    assert list(said["hidden"]["shape"]) == ["0-1"]
    assert len(said["region"]["by_heads"]) == 17
    inside = [one["inside"][0] for one in said["region"]["by_heads"].values()]
    assert max(inside) == inside[0]  # all heads together carry the colour
