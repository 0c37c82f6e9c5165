"""The studies of grounding and of image tokens run from the command line and end with one line that adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from house import ROOT

import interp


def ran(*command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_grounding_says_what_its_saved_result_says(tmp_path: Path) -> None:
    said = ran("experiments/vision/grounding.py", "--n", "6", "--carved", "1", "--out", str(tmp_path))
    found = interp.open(tmp_path / "heldout")
    assert len(found.sizes) == said["scenes"]["heldout"] == 6
    model = interp.load("zoo:shapes-lvlm")
    rows = [row for row in interp.tasks.shapes(model, n=12, split="heldout").rows if row.meta["answer"] == "yes"]
    truth = [row.meta["boxes"][row.meta["objects"].index(row.meta["about"])] for row in rows]
    line = said["read"]["shape"]
    assert line["pointing"][0] == round(float(found.pointing(truth, line["head"]).mean()), 3)
    assert line["mean_map"][0] == round(float(found.pointing(truth).mean()), 3)
    assert len(line["turning"]) == 4
    assert said["carve"]["scenes"] == 1


def test_tokens_kept_whole_change_nothing(tmp_path: Path) -> None:
    said = ran("experiments/vision/tokens.py", "--n", "8", "--draws", "1", "--out", str(tmp_path))
    assert json.loads((tmp_path / "tokens.json").read_text()) == said
    assert len({curve["1.0"][0] for curve in said["accuracy"].values()}) == 1
    assert said["stages"]["0.5"]["mean_retention"] == pytest.approx(0.48, abs=0.02)
    assert said["image_tokens"] == 36
