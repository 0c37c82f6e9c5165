"""The same numbers sooner: activation functions in one step, and the quicker of torch's matrix products on a CPU.

transformers spells some activation functions out in several steps, which costs more than the matrix products around
them; torch has them in one. And on some processors (AMD's) torch's default product of float32 matrices runs at half
the rate of oneDNN's, which a setting chooses. That setting allows products of lower precision where the processor has
fast ones, so a probe product must keep the error of the default before it is taken. Weights laid out beforehand the
way oneDNN wants them are quicker still where many rows go through one block. All of it is given back. The setting is
the process's: while it is on, wide float32 products of other threads are made the same way, equal to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.drive.intercept import Intercept, as_made

TANH_GELU = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "PytorchGELUTanh")
MLPS = {"GPT2MLP": ("c_fc", "act"), "GPTNeoXMLP": ("dense_h_to_4h", "act")}
"""Where an activation has nothing but a linear layer's output to work on, so that the two can be one."""
DEFAULT, ONEDNN, PACKED = "default", "onednn", "onednn, packed"
NARROW = 256
"""Below this width products take too little time to choose between them."""
ROWS, TRIES, GAIN, WORSE = 512, 5, 0.9, 4.0
"""Of the probe product; it is taken if its best time is below GAIN of the default's and its error below WORSE times
the default's."""


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """GPT-2's `gelu_new` costs more than its matrix products when computed step by step; torch has it in one."""
    with Intercept(module) as put:
        for child in module.modules():
            if type(child).__name__ in TANH_GELU and as_made(child) and not torch.is_grad_enabled():
                put.instead(child, _gelu)
        yield


def quicker(x: Tensor) -> str:
    """Which products to use for activations like x [..., d]: DEFAULT, ONEDNN or PACKED."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-1] < NARROW:
        return DEFAULT
    if not torch.backends.mkldnn.is_available():
        return DEFAULT
    return _quicker(x.shape[-1], torch.get_num_threads())


def settled(x: Tensor) -> str:
    """The same by what the processor is and not by a time, which a busy machine stretches: for work whose parts have to
    be made alike wherever they are made."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-1] < NARROW:
        return DEFAULT
    return _settled(x.shape[-1]) if torch.backends.mkldnn.is_available() and _slow_default() else DEFAULT


@cache
def _slow_default() -> bool:
    """Whether torch's default product is known to be the slow one here: on AMD's processors."""
    said = Path("/proc/cpuinfo")
    return said.exists() and "AuthenticAMD" in said.read_text(errors="replace")


@cache
def _settled(width: int) -> str:
    found = _best_made()
    return found if exact(ONEDNN, width) and exact(found, width) else DEFAULT


def _best_made() -> str:
    return PACKED if hasattr(torch.ops.mkldnn, "_linear_pointwise") else ONEDNN


@cache
def exact(name: str, width: int) -> bool:
    """Whether these products keep the precision of torch's default here: a processor that multiplies bfloat16 by itself
    (Intel's AMX) gives up a thousand times of it."""
    return _errors(width)[name] <= WORSE * _errors(width)[DEFAULT]


@cache
def _errors(width: int) -> dict[str, float]:
    a, b, product = _probe(width)
    return {name: _tried(name, a, b, product)[1] for name in (DEFAULT, ONEDNN, _best_made())}


def _probe(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two factors, and their product."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(ROWS, width, generator=random), torch.randn(width, width, generator=random)
    return a, b, a.double() @ b.double()


@cache
def _quicker(width: int, threads: int) -> str:
    found = _best_made()
    if not (exact(ONEDNN, width) and exact(found, width)):
        return DEFAULT
    a, b, product = _probe(width)
    seconds, *others = (_tried(name, a, b, product)[0] for name in (DEFAULT, ONEDNN, found))
    return found if min(others) < GAIN * seconds else DEFAULT


def _tried(name: str, a: Tensor, b: Tensor, product: Tensor) -> tuple[float, float]:
    """The best time of one way to make a product, and its error."""
    with products(name), torch.no_grad():
        multiply = _laid_out(b.t(), None) if name == PACKED else lambda x: torch.mm(x, b)
        error = float((multiply(a).double() - product).abs().max())
        return min(_seconds(multiply, a) for _ in range(TRIES)), error


def _seconds(multiply: Callable[[Tensor], Tensor], a: Tensor) -> float:
    start = time.perf_counter()
    multiply(a)
    return time.perf_counter() - start


def _laid_out(weight: Tensor, bias: Tensor | None, after: str = "none") -> Callable[[Tensor], Tensor]:
    """`x @ weight.T + bias`, then "none" or "gelu", with the weight [out, in] in oneDNN's own layout.

    torch's compiler makes linear layers so; the operators are internal to torch, and the probe product above is what
    they are trusted for."""
    made = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    own = None if bias is None else bias.detach()
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, made, own, after, [], "tanh" if after == "gelu" else "")


@contextmanager
def packed(block: nn.Module, name: str, rows: int) -> Iterator[None]:
    """The linear layers of a block with their weights laid out, while `rows` rows of activations go through it."""
    with Intercept(block) as put:
        if name == PACKED and rows >= ROWS:
            before = dict(_activated(block))
            child: Any
            for child in block.modules():
                if _plain(child):
                    weight = child.weight.t() if type(child).__name__ == "Conv1D" else child.weight
                    put.instead(child, _laid_out(weight, child.bias, "gelu" if child in before else "none"))
                    if child in before:
                        put.instead(before[child], lambda x: x)
        yield


def _plain(child: Any) -> bool:
    """Whether a module is a linear layer, as torch and transformers define it, of float32 weights on a CPU."""
    if (type(child) is not nn.Linear and type(child).__name__ != "Conv1D") or not as_made(child):
        return False
    weight = child.weight
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _activated(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Linear layers with the activation that follows them."""
    for mlp in block.modules():
        if type(mlp).__name__ not in MLPS:
            continue
        linear, act = (getattr(mlp, part) for part in MLPS[type(mlp).__name__])
        watched = linear._forward_hooks or act._forward_hooks or act._forward_pre_hooks
        if type(act).__name__ in TANH_GELU and not watched:
            yield linear, act


@contextmanager
def products(name: str) -> Iterator[None]:
    """Products of float32 matrices on the CPU made this way, and the setting given back afterwards, by the last of the
    threads that asked for it."""
    if name == DEFAULT:
        yield
        return
    setting: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, torch puts it there when it is imported
    with _LOCK:
        _BEFORE.append(_BEFORE[0] if _BEFORE else setting.fp32_precision)
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                setting.fp32_precision = before


_LOCK, _BEFORE = Lock(), list[str]()
