"""What a result has to say about how it came about: versions, model, data, implementation, dtype."""

from __future__ import annotations

import functools
import hashlib
import platform
import weakref
from importlib import metadata
from typing import Any

import torch
from torch import nn

from interp.hooks.inputs import Inputs

_HASHES: weakref.WeakKeyDictionary[nn.Module, tuple[int, str]] = weakref.WeakKeyDictionary()


def about(module: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """A plain dict that goes into every tape and result."""
    config = getattr(module, "config", None)
    parameter = next(module.parameters(), None)
    return {
        "versions": dict(versions()),
        "model": type(module).__name__,
        "model_hash": model_hash(module),
        "inputs_hash": inputs.digest() if inputs is not None else None,
        "attention": getattr(config, "_attn_implementation", None),
        "dtype": str(parameter.dtype).removeprefix("torch.") if parameter is not None else None,
    }


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Versions of what computed the numbers."""
    found = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return (("python", platform.python_version()), *found.items())


def model_hash(module: nn.Module) -> str:
    """A digest of every parameter's name, shape and a spread of its values; quick, and different after training or pruning."""
    stamp = hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in module.parameters()))
    known = _HASHES.get(module)
    if known is not None and known[0] == stamp:
        return known[1]
    total = hashlib.sha256()
    for name, p in module.named_parameters():
        total.update(f"{name} {tuple(p.shape)} {p.dtype}\n".encode())
        if p.device.type != "meta" and p.numel():
            flat = p.detach().reshape(-1)
            spread = flat[torch.linspace(0, flat.numel() - 1, min(64, flat.numel())).long().to(flat.device)]
            total.update(repr(spread.double().tolist()).encode())
    digest = total.hexdigest()[:16]
    _HASHES[module] = (stamp, digest)
    return digest
