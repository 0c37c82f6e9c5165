"""The classes of diffusers that denoise, and a tiny random one of each."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from interp.hooks.errors import ModelError
from interp.zoo.denoisers.films import FILMS
from interp.zoo.denoisers.pictures import PICTURES
from interp.zoo.denoisers.said import Said
from interp.zoo.denoisers.sounds import SOUNDS

SIZES: Said = {**PICTURES, **FILMS, **SOUNDS}
"""By class."""
BESIDE = ("ControlNet", "Transformer2DModel", "TransformerTemporalModel")
"""Classes that are a part of others, or run together with them."""


def _library() -> Any:
    try:
        import diffusers
    except ImportError as missing:
        raise ModelError("diffusers is not installed: pip install 'interp[diffusion]'.") from missing
    return diffusers


def kinds() -> list[str]:
    """Every class of the installed diffusers that is told a time, but those that are parts of others."""
    home = _library()
    found = []
    for name in sorted(name for name in dir(home) if name.endswith("Model") or "Transformer" in name or "UNet" in name):
        kind = getattr(home, name)
        if (
            inspect.isclass(kind)
            and issubclass(kind, nn.Module)
            and "timestep" in inspect.signature(kind.forward).parameters
        ):
            found.append(name)
    return [name for name in found if name not in BESIDE[1:] and BESIDE[0] not in name]


def build(name: str, **changes: Any) -> nn.Module:
    """A random one of this class, gates and last layers too, which start at zero."""
    if name not in SIZES:
        raise ModelError(f"interp has no tiny config of {name}.")
    home = _library()
    if not hasattr(home, name):
        raise ModelError(f"diffusers {home.__version__} has no class {name}.")
    made: nn.Module = getattr(home, name)(**{**SIZES[name], **changes}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made
