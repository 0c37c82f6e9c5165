"""The pruning experiment runs as its docstring says, ends in one JSON line, and writes a model that can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from house import ROOT

import interp


def test_the_experiment_ends_in_one_line_and_leaves_a_report(tmp_path: Path) -> None:
    out = tmp_path / "prune"
    asked = ["--model", "zoo:planted-decoder", "--n", "8", "--heldout", "16", "--draws", "1", "--rounds", "1",
             "--shares", "1", "0.5", "--steps", "2", "--threads", "1", "--out", str(out)]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "experiments/prune.py", *asked],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["experiment"] == "prune"
    assert found["accuracy"] == 1.0
    assert found["heads"][1] * 2 == found["heads"][0]
    assert 0 < found["predicted_half"] < 1
    assert 0 <= found["rescored_half"] <= 1
    assert found["predicted_over_measured"] > 0
    assert {"curve.csv", "curve.html", "scores.json", "summary.json", "half"} <= {p.name for p in out.iterdir()}
    half = interp.load(out / "half")
    assert sum(layer.heads for layer in half.anatomy.towers["text"].layers) < found["heads"][0]
