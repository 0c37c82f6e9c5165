"""Public calls on a pretend accelerator, and on two: the CPU's numbers, and nothing on the wrong device.

On every device attention is torch's own formula (`SDPBackend.MATH`): the CPU has a faster one that rounds otherwise.
"""

from __future__ import annotations

import inspect
from functools import cache

import pytest
import torch
from placed import NEAR, Place, away, check_same, numbers
from public_calls import CALLS, STATISTICS, WITHOUT
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import interp
from interp.kernels.stats import KINDS
from interp.records import every

RUNNING = (
    "Model.run",
    "Model.stream",
    "Model.edited",
    "Model.prepare",
    "Model.roles",
    "edits.",
    "operators.",
    "metrics.",
)
"""What a run goes on with, and its logits, stay on the device; all else is kept, and kept on the CPU."""


@cache
def answer(name: str, place: Place) -> dict[str, Tensor]:
    with sdpa_kernel(SDPBackend.MATH):
        return dict(numbers(CALLS[name](place)))


def check(name: str, where: str, dtype: torch.dtype) -> None:
    there = answer(name, Place(where, dtype))
    check_same(answer(name, Place("cpu", dtype)), there, NEAR[dtype])
    assert name.startswith(RUNNING) or not away(there)


@pytest.mark.parametrize("name", CALLS)
def test_on_two_devices_the_numbers_are_the_cpus(name: str) -> None:
    check(name, "two", torch.float32)


@pytest.mark.parametrize("name", CALLS)
def test_in_bfloat16_they_are_the_cpus_but_for_its_rounding(name: str) -> None:
    check(name, "one", torch.bfloat16)


def test_every_statistic_is_among_them() -> None:
    assert {one.partition(":")[0] for one in STATISTICS} == set(KINDS)


def spelled(name: str) -> str:
    """Without the room where the root has the name too."""
    short = name.rpartition(".")[2]
    return short if short in interp.__all__ else name


def public() -> set[str]:
    found = {name for name in interp.__all__ if not inspect.ismodule(getattr(interp, name))}
    rooms = set(interp.__all__) - found
    found |= {spelled(f"{room}.{name}") for room in rooms for name in getattr(interp, room).__all__}
    return found | {f"Model.{name}" for name in dir(interp.Model) if not name.startswith("_")}


def test_every_public_name_is_called_or_it_is_said_why_not() -> None:
    """Those with a record are called in `test_records.py`."""
    called = {spelled(name) for name in (*CALLS, *(method.name.removeprefix("interp.") for method in every()))}
    without = set(map(spelled, WITHOUT))
    assert public() - called - without == set()
    assert (called | without) - public() == set()
    assert not called & without
