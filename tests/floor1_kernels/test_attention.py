"""Every implementation against the dense fp64 reference, to tolerances derived in `attention_calls.py`."""

from __future__ import annotations

from typing import Any

import pytest
from attention_calls import build, calls, check
from hypothesis import HealthCheck, given, settings

from interp.kernels import attention
from interp.kernels.errors import AttentionError

PORTABLE = ["rows", "sweep", "native", "merge"]


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
