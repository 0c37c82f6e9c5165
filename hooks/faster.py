"""The same numbers sooner: activation functions in one step, and the quicker of torch's matrix products on a CPU.

transformers spells some activation functions out in several steps, which costs more than the matrix products beside
them; torch has them in one. And on some processors (AMD's) torch's default product of float32 matrices runs at half
the rate of oneDNN's, which a setting chooses. That setting allows products of lower precision where the processor has
fast ones, so a probe product must keep the error of the default before it is taken. Both are given back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

TANH_GELU = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "PytorchGELUTanh")
DEFAULT, ONEDNN = "default", "onednn"
NARROW = 256
"""Below this width products take too little time to choose between them."""
ROWS, TRIES, GAIN, WORSE = 512, 3, 0.9, 4.0
"""Of the probe product; it is taken if its best time is below GAIN of the default's and its error below WORSE times
the default's."""


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


def quicker(x: Tensor) -> str:
    """Which products to use for activations like x [..., d]: DEFAULT or ONEDNN."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-1] < NARROW:
        return DEFAULT
    if not torch.backends.mkldnn.is_available():
        return DEFAULT
    return _quicker(x.shape[-1], torch.get_num_threads())


@cache
def _quicker(width: int, threads: int) -> str:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(ROWS, width, generator=random), torch.randn(width, width, generator=random)
    exact, found = a.double() @ b.double(), {}
    for name in (DEFAULT, ONEDNN):
        with products(name):
            error = float((torch.mm(a, b).double() - exact).abs().max())
            found[name] = (min(_seconds(a, b) for _ in range(TRIES)), error)
    (slow, error), (fast, other) = found[DEFAULT], found[ONEDNN]
    return ONEDNN if fast < GAIN * slow and other <= WORSE * error else DEFAULT


def _seconds(a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - start


@contextmanager
def products(name: str) -> Iterator[None]:
    """Products of float32 matrices on the CPU made this way, and the setting given back afterwards."""
    if name == DEFAULT:
        yield
        return
    setting: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, torch puts it there when it is imported
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
