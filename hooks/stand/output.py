"""The answer in what a model returns, read and replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import SiteError


def logits_of(output: Any) -> Tensor | None:
    """The answer in what a model returns; None for a base model, which has none."""
    for name in ("logits", "logits_per_image"):
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    return output if torch.is_tensor(output) else None


def logits_key(output: Any) -> str | int | None:
    """Where a model's answer is in what it returns."""
    if torch.is_tensor(output):
        return None
    for key in ("logits", "logits_per_image"):
        if getattr(output, key, None) is not None:
            return key
    if isinstance(output, (tuple, list)) and output and torch.is_tensor(output[0]):
        return 0
    raise SiteError(
        f"{type(output).__name__} has no logits: load the model with a head (ForCausalLM, ForImageClassification,"
        " ...), or record 'final_norm' instead."
    )


def with_logits(output: Any, key: str | int | None, logits: Tensor) -> Any:
    """The output with other logits where `logits_key` found them."""
    if isinstance(key, int):
        return (*output[:key], logits, *output[key + 1 :])
    return logits if key is None else replace(output, **{key: logits})
