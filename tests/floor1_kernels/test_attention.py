"""Every implementation against the dense fp64 reference, to tolerances derived in `attention_calls.py`."""

from __future__ import annotations

from typing import Any

import pytest
from attention_calls import build, calls, check, compared

from interp.kernels import attention
from interp.kernels.attention import IMPLEMENTATIONS
from interp.kernels.errors import AttentionError

LEAST = {"rows": 150, "sweep": 150, "native": 120, "merge": 75}
"""Calls of 150 that must be compared; the others are refused, for a reason that no set can say."""


@pytest.mark.parametrize("impl", LEAST)
def test_equals_the_reference(impl: str) -> None:
    able = next(i for i in IMPLEMENTATIONS if i.name == impl).able()

    def compare(call: dict[str, Any]) -> bool:
        q, k, v, more = build(call)
        if attention.explain(q, k, v, impl=impl, **more)[impl] != "taken":
            with pytest.raises(AttentionError, match="cannot compute this"):
                attention.attend(q, k, v, impl=impl, **more)
            return False
        check(q, k, v, more, impl)
        return True

    made = compared(calls(able), compare, most=120) + compared(calls(), compare, most=30)
    assert made >= LEAST[impl], f"only {made} of 150 calls were compared"
