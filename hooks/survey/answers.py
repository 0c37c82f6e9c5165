"""One tensor that stands for a model's output, and when two of them are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import CheckFailed
from interp.hooks.stand.output import logits_of


def answer(output: Any) -> Tensor:
    """One tensor that stands for a model's output: its logits, else its last hidden state."""
    logits = logits_of(output)
    if logits is not None:
        return logits
    for name in ("last_hidden_state", "pooler_output"):
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    if isinstance(output, (tuple, list)) and torch.is_tensor(output[0]):
        return output[0]
    raise CheckFailed(f"cannot tell which tensor of {type(output).__name__} is the model's answer")


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; not-a-number equals itself, since it is reported where it arises."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
