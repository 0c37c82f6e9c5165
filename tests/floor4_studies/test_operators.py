"""The studies and the benchmark of operators run, and what they print last is JSON that says what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from house import ROOT

RUNS: dict[str, list[str]] = {
    "bench/operators.py": ["--lengths", "300", "--repeats", "1"],
    "bench/masks.py": ["--lengths", "300", "--repeats", "1", "--flex", "eager"],
    "operators/deconstruct.py": ["--models", "zoo:shapes-vit", "--n", "4", "--heads", "3", "--out", "OUT"],
    "operators/robust.py": ["--n", "2", "--steps", "1"],
    "operators/pictures.py": ["--out", "OUT"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_study_of_operators_runs(name: str, tmp_path: Path) -> None:
    given = [str(tmp_path) if word == "OUT" else word for word in RUNS[name]]
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / name), *given], cwd=tmp_path, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if name == "bench/operators.py":
        assert all(value > 0 for value in said["speedup"].values())
    elif name == "bench/masks.py":
        assert all(min(row["predicted"], row["forward"], row["forward and backward"]) > 0 for row in said["rows"])
        assert {row["mask"]: row["predicted"] for row in said["rows"]}["full"] == 1.0
        assert min(row["over flex"] for row in said["rows"]) > 0
        assert said["two_processes"]["gap"] < 1e-5
    elif name == "operators/deconstruct.py":
        assert abs(said["all_heads"]["zoo:shapes-vit softmax"]) < 1e-3
        assert said["all_heads"]["zoo:shapes-vit uniform"] > 0.1
    elif name == "operators/robust.py":
        assert said["metric"]["as it is"]["clean"] > said["metric"]["as it is"]["own"]
    else:
        assert said["operators"] == [26, 26]
        assert (tmp_path / "operators-sentence.png").stat().st_size > 5000
