"""The Triton kernels compiled for GPUs that are not here: registers must not spill."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from interp.kernels.gpu.ahead import table

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

AHEAD = """
import json, sys
from interp.kernels.gpu.ahead import compiled
for case, width, dtype in json.loads(sys.argv[2]):
    print(json.dumps(compiled(case, width, int(sys.argv[1]), dtype=dtype)))
"""
FEW = [("forward, statistics", 128, "bf16")]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiles_without_spilling(architecture: int, every: bool) -> None:
    cases = list(table(architecture)) if every else FEW
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", AHEAD, str(architecture), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases)
    assert [x for x in found if x["spilled"] > 0] == []
