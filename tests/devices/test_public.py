"""Every public call on a pretend accelerator, and on two: the CPU's numbers, and nothing on the wrong device."""

from __future__ import annotations

import inspect
from functools import cache

import pytest
import torch
from placed import Place, numbers
from public_calls import CALLS, WITHOUT
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import interp

RUNNING = (
    "Model.run", "Model.stream", "Model.edited", "Model.prepare", "Model.roles", "edits.", "metrics.", "prune",
    "long.long_heads",
)  # fmt: skip
"""What these give is what a run goes on with, or its logits; all else is kept, and kept on the CPU."""
LOGITS = 4.0
"""Effects are differences of logits, which are about as large as this in the smallest of these models."""
ROUNDINGS = 8
"""In bfloat16: two writes in each of up to three blocks, the norm, the head; each rounds by half a unit."""
HEAVY = ("report", "importance", "faithfulness", "head", "attribute")
"""Compositions of calls, and checks of estimates, which are called in float32 only."""


@cache
def answer(name: str, place: Place) -> dict[str, Tensor]:
    """On every device by torch's own formula of attention, of which the CPU has a faster one that rounds otherwise."""
    with sdpa_kernel(SDPBackend.MATH):
        return dict(numbers(CALLS[name](place)))


def check_same(name: str, where: str, dtype: torch.dtype, near: float) -> None:
    here, there = (answer(name, Place(one, dtype)) for one in ("cpu", where))
    assert here.keys() == there.keys()
    assert here
    kept = {path: value.device for path, value in there.items() if value.device.type != "cpu"}
    assert name.startswith(RUNNING) or not kept
    for path, value in here.items():
        size = max([LOGITS, *value[value.isfinite()].abs().flatten().tolist()])
        torch.testing.assert_close(
            there[path].cpu(), value, rtol=0, atol=near * size, equal_nan=True, msg=lambda m, p=path: f"{p}: {m}"
        )


@pytest.mark.parametrize("name", CALLS)
def test_on_two_devices_the_numbers_are_the_cpus(name: str) -> None:
    check_same(name, "two", torch.float32, 1e-6)


@pytest.mark.parametrize("name", ["path_patch", "attribution.key_spans", "edges", "lens", "Model.run"])
def test_on_one_device_they_are_as_well(name: str) -> None:
    """What behaves otherwise where a model lies on several: where its inputs go, and how its logits are asked for."""
    check_same(name, "one", torch.float32, 1e-6)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in HEAVY])
def test_in_bfloat16_they_are_the_cpus_but_for_its_rounding(name: str) -> None:
    check_same(name, "one", torch.bfloat16, ROUNDINGS * torch.finfo(torch.bfloat16).eps / 2)


def spelled(name: str) -> str:
    """Without the room where the root has the name too."""
    short = name.rpartition(".")[2]
    return short if short in interp.__all__ else name


def public() -> set[str]:
    found = {name for name in interp.__all__ if not inspect.ismodule(getattr(interp, name))}
    rooms = set(interp.__all__) - found
    found |= {spelled(f"{room}.{name}") for room in rooms for name in getattr(interp, room).__all__}
    return found | {f"Model.{name}" for name in dir(interp.Model) if not name.startswith("_")}


def test_every_public_name_is_called_here_or_it_is_said_why_not() -> None:
    called, without = set(map(spelled, CALLS)), set(map(spelled, WITHOUT))
    assert public() - called - without == set()
    assert (called | without) - public() == set()
    assert not called & without
