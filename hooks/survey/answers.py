"""One tensor that is taken as a model's output, and when two of them are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import CheckFailed
from interp.hooks.stand.output import logits_of


def answer(output: Any) -> Tensor:
    """One tensor that is taken as a model's output: its logits, else its last hidden state (the last of several), else
    all its numbers."""
    logits = logits_of(output)
    if logits is not None:
        return logits
    for name in ("last_hidden_state", "pooler_output"):
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    named = [v for k, v in output.items() if k.endswith("last_hidden_state")] if isinstance(output, Mapping) else []
    if named and torch.is_tensor(named[-1]):
        return named[-1]
    if isinstance(output, (tuple, list)) and torch.is_tensor(output[0]):
        return output[0]
    if found := list(_floats(output)):
        return torch.cat([one.flatten().to(found[0]) for one in found])
    raise CheckFailed(f"cannot tell which tensor of {type(output).__name__} is the model's answer")


def _floats(output: Any) -> Iterator[Tensor]:
    """Every tensor of numbers in what a model returns."""
    if torch.is_tensor(output):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for one in output.values() if isinstance(output, Mapping) else output:
            yield from _floats(one)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; not-a-number equals itself, since it is reported where it arises."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
