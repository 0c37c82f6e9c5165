"""What grows with length, counted and not timed: numbers that operations give, and the largest of their tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_parts import Numbers
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import Causal, Full, Mask, Window
from interp.operators import (
    Agent,
    Channels,
    Chunks,
    Clusters,
    InLine,
    Landmarks,
    Linear,
    LocalLinear,
    Masked,
    PrefixScan,
    RankAugmented,
    Reversed,
    StaticQK,
    TwoLevel,
)
from interp.operators.common import operator as common
from interp.operators.linear import streams


def counted(operator: Any, n: int, mask: Mask, width: int = 4) -> Numbers:
    q, k, v = (torch.randn(1, 2, n, width) for _ in range(3))
    with torch.no_grad(), Numbers() as seen:
        operator.z(Part(q, k, v, mask, 0.5, None, None, None, (0, 1)))
    return seen


LINEAR: dict[str, tuple[Any, Mask]] = {
    **{f"{name}, causal": (Linear("", name), Causal()) for name in ("elu", "exp", "taylor")},
    "elu, full": (Linear("", "elu"), Full()),
    "elu, window": (Linear("", "elu"), Causal() & Window(40)),
    "decay": (Linear("", "silu", rate=0.1, normalize=False), Causal()),
    "decay, both ways": (Linear("", rate=0.1), Full()),
    "inline": (InLine(""), Causal()),
    "rala": (RankAugmented(""), Causal()),
    "rala, full": (RankAugmented(""), Full()),
    "agent": (Agent("", 4), Full()),
    "channels": (Channels(""), Full()),
    "window": (Masked("", Window(16)), Causal()),
}


@pytest.mark.parametrize("name", LINEAR)
def test_twice_the_length_is_twice_the_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 32)
    operator, mask = LINEAR[name]
    short, long = (counted(operator, n, mask) for n in (1024, 2048))
    assert long.total < 2.3 * short.total
    assert long.largest < 2.1 * short.largest


SCAN = PrefixScan("", torch.ones(1, 4))
QUADRATIC: dict[str, Any] = {
    "local linear": LocalLinear(""), "clusters": Clusters("", 4), "two level": TwoLevel("", 64, 2),
    "chunks": Chunks("", 64), "landmarks": Landmarks("", 64), "reversed": Reversed(""), "static": StaticQK(""),
}  # fmt: skip


@pytest.mark.parametrize("name", QUADRATIC)
def test_memory_is_linear_where_time_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of queries x keys."""
    monkeypatch.setattr(common, "NUMBERS", 2**14)
    seen = counted(QUADRATIC[name], 512, Causal())
    assert seen.largest < 512 * 512


def test_a_scan_takes_rounds_of_the_logarithm() -> None:
    short, long = (counted(SCAN, n, Full()).total for n in (512, 1024))
    assert long < 2.3 * short * 10 / 9


def test_dense_attention_would_be_seen() -> None:
    class Dense(Linear):
        def z(self, part: Part) -> Tensor:
            return part.read(self.pattern(replace(part, rows=None)))

    short, long = (counted(Dense("", "elu"), n, Causal()) for n in (512, 1024))
    assert long.total > 3 * short.total
    assert long.largest >= 2 * 1024 * 1024
