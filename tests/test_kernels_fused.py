"""The Triton kernels: interpreted, against the fp64 reference, and compiled ahead for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from interp.kernels import attention, fused
from interp.kernels import edits as E
from interp.kernels import masks as M
from interp.kernels.errors import AttentionError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

STATS = [
    "lse", "entropy", "max", "argmax", "distance", "first", "previous", "self", "sink", "mass:third", "received",
    "seen", "received_mean",
]  # fmt: skip
SHAPES = {
    "causal": (70, 70, M.Causal()),
    "window": (5, 90, M.Causal() & M.Window(9)),
    "decoding": (1, 1100, M.Full()),
    "padding": (33, 40, M.Padding(torch.tensor([7, 0])) & M.Causal()),
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def inputs(queries: int, keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 24), (2, 2, keys, 24), (2, 2, keys, 20))
    return [torch.randn(*s, generator=g).to(dtype) for s in shapes]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: str, dtype: torch.dtype) -> None:
    queries, keys, mask = SHAPES[shape]
    q, k, v = inputs(queries, keys, dtype)
    third = torch.arange(keys) % 3 == 0
    changed = [
        E.Temperature(2.0, heads=(1,)), E.BiasKeys(third, 1.0), E.Gate(0.5),
        E.MaskKeys(torch.arange(keys) == 4, heads=(0,)),
    ]  # fmt: skip
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for edits, softcap in ((None, 3.0), (changed, None)):
        arguments = {"mask": mask, "stats": STATS, "key_sets": {"third": third}, "edits": edits, "softcap": softcap}
        found, exact = (attention.attend(q, k, v, sinks=sinks, impl=i, **arguments) for i in ("triton", "reference"))
        assert found.z is not None
        assert exact.z is not None
        # Scores are fp32 sums of 24 products, temperatures divide first; fp16 rounds z, and the weights before p v.
        near = 2**-10 if dtype == torch.float16 else 1e-5
        torch.testing.assert_close(found.z, exact.z, rtol=near, atol=near)
        for name, expected in {"lse": exact.lse, **exact.stats}.items():
            got = found.lse if name == "lse" else found.stats[name]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert int(found.counts["blind"]) == int(exact.counts["blind"])


def test_decoding_is_split_over_keys() -> None:
    q, k, v = inputs(1, 1100, torch.float32)
    made = attention.request(q, k, v, stats=["entropy"])
    call = fused._prepared(made)
    assert fused._splits(made, 1, call.configuration.keys) > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mask": M.Power()}, "mask Power is not one run of keys per row"),
        ({"mask": torch.zeros(8, 8)}, "additive"),
        ({"stats": ["topk:2"]}, "topk"),
        ({"edits": E.Blend("uniform", 0.5)}, "Blend is not fused"),
        ({"edits": E.Temperature(2.0), "softcap": 3.0}, "after a soft cap"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments: dict[str, Any], said: str) -> None:
    q, k, v = inputs(8, 8, torch.float32)
    with pytest.raises(AttentionError, match=said):
        attention.attend(q, k, v, impl="triton", **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's limits")
def test_the_interpreter_refuses_bf16_and_is_never_chosen() -> None:
    q, k, v = inputs(8, 8, torch.bfloat16)
    with pytest.raises(AttentionError, match=r"torch\.bfloat16 is not one of"):
        attention.attend(q, k, v, impl="triton")
    said = attention.explain(*inputs(8, 8, torch.float32))
    assert said["triton"] == "interpreted; only when asked for by name"


AHEAD = """
import json, sys
from interp.kernels.triton_ahead import compiled
for name, width, heavy in json.loads(sys.argv[2]):
    print(json.dumps(compiled(name, width, int(sys.argv[1]), heavy=heavy)))
"""
FEW = [["forward", 128, False]]
ALL = [[n, w, h] for w in (64, 128, 256) for n, h in (("forward", False), ("forward", True), ("received", False))]


@pytest.mark.parametrize("which", [pytest.param(FEW, id="few"), pytest.param(ALL, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiles_ahead_without_spilling(architecture: int, which: list[list[Any]]) -> None:
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", AHEAD, str(architecture), json.dumps(which)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(which)
    assert [x for x in found if x["spilled"] > 0] == []
