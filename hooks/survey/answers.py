"""One tensor that stands for a model's output, and when two of them are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import CheckFailed
from interp.hooks.stand.output import logits_of


def answer(output: Any) -> Tensor:
    """One tensor that stands for a model's output: its logits, else its last hidden state (the last of several),
    else the first tensor of numbers in it (a waveform, the first of several logits)."""
    logits = logits_of(output)
    if logits is not None:
        return logits
    for name in ("last_hidden_state", "pooler_output"):
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    named = [v for k, v in output.items() if k.endswith("last_hidden_state")] if isinstance(output, Mapping) else []
    found = next(_numbers([*reversed(named), output]), None)
    if found is None:
        raise CheckFailed(f"cannot tell which tensor of {type(output).__name__} is the model's answer")
    return found


def _numbers(output: Any) -> Iterator[Tensor]:
    """The tensors of numbers in what a model returns, in its order."""
    if torch.is_tensor(output):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _numbers(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _numbers(value)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; not-a-number equals itself, since it is reported where it arises."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
