"""Activation functions that transformers spells out in several steps, replaced for a while by one that does the
same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

TANH_GELU = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "PytorchGELUTanh")


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """GPT-2's `gelu_new` costs more than its matrix products when computed step by step; torch has it in one."""
    with ExitStack() as undo:
        for child in module.modules():
            if type(child).__name__ in TANH_GELU and "forward" not in vars(child) and not torch.is_grad_enabled():
                child.forward = _gelu
                undo.callback(vars(child).pop, "forward")
        yield
