"""The module inside what people hold: wrappers of other libraries are looked through, never taken apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.hooks.errors import ModelError
from interp.hooks.family import TRANSFORMER_BRIDGE, Family


@dataclass(frozen=True)
class Unwrapped:
    """A module, how it was reached (for printing), and the processor that came with it."""

    module: nn.Module
    how: str = ""
    processor: Any = None
    family: Family | None = None


def unwrap(held: Any) -> Unwrapped:
    """The module to stand in. TransformerLens' bridge and nnsight's models are read through their own attributes."""
    home = type(held).__module__.partition(".")[0]
    if home == "transformer_lens":
        inside = _module(held, held.original_model)
        return Unwrapped(inside, " (in a TransformerBridge)", getattr(held, "tokenizer", None), TRANSFORMER_BRIDGE)
    if home == "nnsight":
        return Unwrapped(_module(held, held._module), " (in an nnsight model)", getattr(held, "tokenizer", None))
    if hasattr(held, "_orig_mod"):
        return Unwrapped(held._orig_mod, " (compiled; run eagerly while something is on it)")
    if isinstance(held, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        return Unwrapped(held.module, f" (in {type(held).__name__})")
    return Unwrapped(_module(held, held))


def _module(held: Any, found: Any) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"expected a torch module, or a TransformerLens or nnsight model, got {type(held).__name__}: {held!r:.80}."
        )
    return found


@contextmanager
def forced_eager() -> Iterator[None]:
    """Compiled code does not see hooks put on later, so it runs uncompiled meanwhile; nothing is recompiled or lost."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager") if not _stance_is_eager() else nullcontext():
        yield


def _stance_is_eager() -> bool:
    from torch._dynamo import eval_frame

    return getattr(eval_frame, "_stance", None) is not None and eval_frame._stance.stance == "force_eager"
