"""The examples for nnsight, captum and TransformerLens run as they are printed, and their numbers agree."""

import json
import subprocess
import sys

from house import ROOT


def test_the_examples_agree() -> None:
    ran = subprocess.run(
        [sys.executable, "experiments/interop.py"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said.pop("experiment") == "interop"
    assert {name.split("_")[0] for name in said} == {"nnsight", "captum", "transformer"}
    assert len(said) >= 7
    assert max(said.values()) < 5e-3
