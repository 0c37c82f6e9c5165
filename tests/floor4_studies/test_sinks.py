"""The study of sinks and its benchmark run from the command line and end with one line of JSON that adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from house import ROOT

import interp


def ran(*command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_study_says_what_its_saved_results_say(tmp_path: Path) -> None:
    said = ran("experiments/sinks.py", "--model", "zoo:shapes-vit", "--n", "6", "--draws", "3", "--out", str(tmp_path))
    found = interp.open(Path(said["out"]) / "sinks")
    assert said["heads"] == len(found.sites) == 16
    assert said["sink_metric"]["0.3"] == round(found.metric(0.3), 3)
    for which in ("first", "later"):
        hidden, line = interp.open(Path(said["out"]) / f"knockout-{which}"), said["knockout"][which]
        assert hidden.random.shape == (3, 6)
        assert line["effect"][0] == round(float(hidden.sinks.mean()), 3)
        assert line["epsilon"] <= 0.3
    assert said["act"]["kept"][0] == round(interp.open(Path(said["out"]) / "act").gain, 3)
    assert (Path(said["out"]) / "sinks.html").stat().st_size > 1000


def test_a_side_of_the_benchmark_measures_a_short_text() -> None:
    said = ran("experiments/bench/sinks.py", "--only", "streaming", "--length", "1024", "--threads", "1")
    assert said["mb"] >= 0
    assert said["seconds"] > 0
