"""No implementation but the reference allocates anything of queries x keys, whatever the edit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.masks import symbols as M
from interp.kernels.native import marshal

N, INTERPRETED = 1200, 600
"""Tokens; fewer where Triton's interpreter computes."""


def few(n: int) -> Tensor:
    return torch.arange(n) < 5


EDITS: dict[str, Callable[[int], list[E.Edit]]] = {
    "none": lambda n: [],
    "temperature": lambda n: [E.Temperature(0.7)],
    "key bias": lambda n: [E.BiasKeys(few(n), 1.0)],
    "emphasis": lambda n: [E.Emphasize(few(n), 0.5)],
    "key mask": lambda n: [E.MaskKeys(few(n))],
    "redistribute": lambda n: [E.Redistribute(few(n), ~few(n), 0.5)],
    "identity": lambda n: [E.Blend("identity", 0.1)],
    "uniform": lambda n: [E.Blend("uniform", 1.0)],
    "gate": lambda n: [E.Gate(0.5)],
    "together": lambda n: [edit for name in ("temperature", "redistribute", "uniform") for edit in EDITS[name](n)],
}
CANNOT = {("merge", "emphasis")}
"""What an implementation does not do at all, so that another is taken; everything else it must."""


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() >= x.numel() * x.element_size():
                self.elements = max(self.elements, x.numel())
        return out


def largest(impl: str, n: int = N, **arguments: Any) -> int:
    q, k, v = (torch.randn(1, 1, n, 4) for _ in range(3))
    with Largest() as seen:
        out = attention.attend(q, k, v, impl=impl, **arguments)
    assert out.impl == impl
    return seen.elements


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("impl", [n for n in attention.names() if n != "reference"])
def test_nothing_of_n_by_n_is_allocated(impl: str, edit: str) -> None:
    if impl == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    n = INTERPRETED if impl == "triton" else N
    q = torch.randn(1, 1, n, 4)
    arguments = {"mask": M.Causal(), "edits": EDITS[edit](n)}
    reason = attention.explain(q, q, q, impl=impl, **arguments)[impl]
    assert (reason != "taken") == ((impl, edit) in CANNOT), reason
    if reason == "taken":
        assert largest(impl, n, **arguments) < n * n // 2


@pytest.mark.parametrize("impl", ["rows", "sweep", "native"])
def test_nor_for_statistics_and_masks_that_are_no_run_of_keys(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marshal, "MASK_BYTES", 2**18)
    stats = ["entropy", "received", "received_mean", "topk:4", "distance", "max", "argmax"]
    for mask in (M.Causal(), M.Strided(30)):
        assert largest(impl, mask=mask, edits=EDITS["together"](N), stats=stats) < N * N // 2


@pytest.mark.parametrize("impl", ["rows", "native", "merge"])
def test_nor_for_a_gradient(impl: str) -> None:
    q, k, v = (torch.randn(1, 1, N, 4, requires_grad=True) for _ in range(3))
    stats = [] if impl == "merge" else ["entropy"]
    with Largest() as seen:
        out = attention.attend(q, k, v, mask=M.Causal(), stats=stats, impl=impl)
        assert out.z is not None
        (out.z.sum() + sum(x.sum() for x in out.stats.values())).backward()
    assert seen.elements < N * N // 2
    assert q.grad is not None
    assert bool(q.grad.isfinite().all())


def test_the_reference_is_seen_to_allocate_it() -> None:
    """So that the counting counts."""
    assert largest("reference", mask=M.Causal()) >= N * N
