"""Studies of what vision-language models see run from the command line and end with one line of JSON that adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from house import ROOT

from interp.zoo.measured import measure


def ran(*command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_model_alone_is_its_card_and_a_method_stands_beside_its_control(tmp_path: Path) -> None:
    said = ran(
        "experiments/vision/hallucination.py", "--captions", "4", "--draws", "1", "--methods", "vhr,var",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert json.loads((tmp_path / "hallucination.json").read_text()) == said
    alone, card = said["methods"]["none"], measure("shapes-lvlm")
    for name in ("hallucination_rate", "balanced_accuracy"):
        assert alone[name]["value"] == card[name]["value"]
        low, high = alone[name]["interval"]
        assert low < alone[name]["value"] < high
    assert alone["threshold"] == {name: alone[name]["value"] for name in ("missed", "balanced_accuracy")}
    assert said["sinks"]["visual_sinks"] == 0
    assert all(change["value"] == 0 for change in said["methods"]["var"]["change"].values())
    vhr = said["methods"]["vhr"]
    assert len(vhr["random"]["hallucination_rate"]) == 1
    change = vhr["hallucination_rate"]["value"] - alone["hallucination_rate"]["value"]
    assert abs(vhr["change"]["hallucination_rate"]["value"] - change) < 2e-4
