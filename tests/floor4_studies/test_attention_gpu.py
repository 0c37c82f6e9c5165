"""The GPU benchmark without a GPU: every side of ours runs, nothing is claimed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from house import ROOT

SCRIPT = ROOT / "experiments" / "bench" / "attention_gpu.py"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure"),
]


def run(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_dry_run_goes_through_every_side() -> None:
    lines = run("--dry")
    sides = [x.split("|")[1:4] for x in lines if x.startswith("| ")][1:]
    assert len(sides) == 10
    missing = {name.strip(): ms.strip() for name, _, ms in sides if ms.strip() != "not measured"}
    needs = "not measured: needs a GPU"
    assert missing == {"flash": needs, "cudnn": needs, "flash, forward and backward": needs}
    assert json.loads(lines[-1]) == {"bench": "attention_gpu", "result": "not measured"}


def test_without_a_gpu_it_says_so_and_keeps_what_a_gpu_wrote(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    run("--out", str(out))
    assert "not measured, for want of a GPU" in out.read_text()
    out.write_text("a table\n")
    run("--out", str(out))
    assert out.read_text() == "a table\n"
