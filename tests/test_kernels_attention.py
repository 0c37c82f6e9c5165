"""Every implementation against the dense fp64 reference, to tolerances derived in `attention_calls.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_calls import build, calls, tolerance
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from interp.kernels import attention, reference
from interp.kernels.errors import AttentionError
from interp.kernels.request import request

PORTABLE = ["rows", "sweep", "native", "merge"]


def compare(found: Tensor, low: Tensor, high: Tensor, scores: float, what: str) -> None:
    assert found.shape == high.shape, what
    assert bool((found.isfinite() == high.isfinite()).all()), what
    rounding = 0.0 if found.dtype == low.dtype else float(torch.finfo(found.dtype).eps * high.abs().amax())
    torch.testing.assert_close(
        found.double(),
        high.double(),
        rtol=0,
        atol=tolerance(low, high, scores) + rounding,
        msg=lambda text: f"{what}: {text}",
    )


def check(q: Tensor, k: Tensor, v: Tensor, more: dict[str, Any], impl: str) -> None:
    made = request(q, k, v, **more)
    out = attention.attend(q, k, v, impl=impl, **more)
    z, lse, stats, counts = reference.attend(made, dtype=torch.float64)
    z_low, lse_low, stats_low, _ = reference.attend(made, dtype=made.accumulate)
    p = reference.pattern(made)
    size = float(reference.edited_scores(made, torch.float64)[0].clamp(-1e4, 1e4).abs().amax())
    near = tolerance(reference.pattern(made, dtype=made.accumulate), p, size)
    assert out.impl == impl
    assert z is not None
    assert z_low is not None
    assert out.z is not None
    compare(out.z, z_low, z, size, "z")
    compare(out.lse, lse_low, lse, size, "lse")
    assert set(out.stats) == set(stats)
    for name, expected in stats.items():
        if name == "argmax" or name.endswith(".keys"):
            same_keys(out.stats[name], expected, p, near)
        elif name == "seen":
            assert torch.equal(out.stats[name].long(), expected)
        else:
            compare(out.stats[name], stats_low[name], expected, size, name)
    assert int(out.counts["blind"]) == int(counts["blind"])
    assert int(out.counts["unmoved"]) == int(counts["unmoved"])


def same_keys(found: Tensor, expected: Tensor, p: Tensor, near: float) -> None:
    """The same keys, or others of the same weight."""
    at, of = (x.reshape(*p.shape[:3], -1) for x in (found, expected))
    assert bool(((at < 0) == (of < 0)).all())
    torch.testing.assert_close(
        p.gather(-1, at.clamp(min=0)), p.gather(-1, of.clamp(min=0)), rtol=0, atol=2 * near + 1e-9
    )


@pytest.mark.parametrize("impl", PORTABLE)
@given(call=calls())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_equals_the_reference(impl: str, call: dict[str, Any]) -> None:
    q, k, v, more = build(call)
    if attention.explain(q, k, v, impl=impl, **more)[impl] != "taken":
        with pytest.raises(AttentionError, match="cannot compute this"):
            attention.attend(q, k, v, impl=impl, **more)
        return
    check(q, k, v, more, impl)
