"""Which projections hold a quantised weight, and which of them round what they read as well.

A weight-only projection (torchao's int8 and int4, bitsandbytes' NF4) is still linear: what heads write adds up. One
that rounds its input (LLM.int8, dynamic quantisation) is not, so what a single head writes is not defined by it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

DYNAMIC = ("Linear8bitLt", "ActivationQuantized", "Dynamic")


def quantised(child: nn.Module) -> str | None:
    """The kind of quantised weight a projection holds; None for a plain one."""
    home = type(child).__module__.partition(".")[0]
    weight = child._parameters.get("weight")
    if home == "bitsandbytes":
        return f"{type(child).__name__} (bitsandbytes)"
    if weight is not None and type(weight).__module__.partition(".")[0] == "torchao":
        return f"{type(weight).__name__} (torchao)"
    if ".quantized" in type(child).__module__:
        return f"{type(child).__name__} (torch)"
    return None


def rounds_its_input(child: nn.Module) -> bool:
    """Whether a projection also quantises what it reads, so that it is not linear: LLM.int8, dynamic quantisation."""
    if quantised(child) is None:
        return False
    weight: Any = child._parameters.get("weight")
    kinds = f"{type(child).__module__}.{type(child).__name__} {type(weight).__name__}"
    return getattr(weight, "act_quant_kwargs", None) is not None or any(word in kinds for word in DYNAMIC)
