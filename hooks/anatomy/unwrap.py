"""The module inside what people hold: wrappers of other libraries are looked through, never taken apart."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.hooks.anatomy.family import TRANSFORMER_BRIDGE, Family
from interp.hooks.denoisers.pipelines import denoiser_of
from interp.hooks.errors import ModelError


@dataclass(frozen=True)
class Unwrapped:
    """A module, how it was reached (for printing), and the processor that came with it."""

    module: nn.Module
    how: str = ""
    processor: Any = None
    family: Family | None = None


def unwrap(held: Any) -> Unwrapped:
    """The module that is read and changed. TransformerLens' bridge and nnsight's models are read through their own
    attributes."""
    home = type(held).__module__.partition(".")[0]
    if home == "transformer_lens":
        inside = _module(held, held.original_model)
        return Unwrapped(inside, " (in a TransformerBridge)", getattr(held, "tokenizer", None), TRANSFORMER_BRIDGE)
    if home == "nnsight":
        return Unwrapped(_module(held, held._module), " (in an nnsight model)", getattr(held, "tokenizer", None))
    if not isinstance(held, nn.Module) and "diffusers" in _homes(held):
        name, inside = denoiser_of(held)
        return Unwrapped(inside, f" (the {name} of a {type(held).__name__})", held)
    if hasattr(held, "_orig_mod"):
        return Unwrapped(held._orig_mod, " (compiled; run eagerly while something is on it)")
    if isinstance(held, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        return Unwrapped(held.module, f" (in {type(held).__name__})")
    return Unwrapped(_module(held, held))


def _homes(held: Any) -> set[str]:
    """The packages that its class comes from: a pipeline of one's own is one of diffusers' all the same."""
    return {base.__module__.partition(".")[0] for base in type(held).__mro__}


def _module(held: Any, found: Any) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise ModelError(
            "expected a torch module, a diffusers pipeline, or a TransformerLens or nnsight model, got"
            f" {type(held).__name__}: {held!r:.80}."
        )
    return found


@contextmanager
def forced_eager() -> Iterator[None]:
    """Compiled code does not see hooks put on later, so it runs uncompiled meanwhile; nothing is recompiled or lost.
    The same goes for the fast path of torch's own transformer layers, which attends where hooks cannot see it: what is
    compared with a run that is watched is off it too."""
    _EAGER.enter()
    try:
        yield
    finally:
        _EAGER.leave()


class _Eager:
    """Both are one for the whole process, so the first in sets them and the last out puts the old ones back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.stance: Any = None
        self.fast = True

    def enter(self) -> None:
        import torch

        with self.lock:
            if self.inside == 0:
                self.fast = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            if self.stance is None and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
            self.inside += 1

    def leave(self) -> None:
        import torch

        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                torch.backends.mha.set_fastpath_enabled(self.fast)
                if self.stance is not None:
                    self.stance.__exit__(None, None, None)
                    self.stance = None


_EAGER = _Eager()
