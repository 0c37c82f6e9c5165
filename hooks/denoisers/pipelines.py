"""The parts of a diffusers pipeline: its denoiser, and the encoders of its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from interp.hooks.denoisers.calls import denoises
from interp.hooks.errors import ModelError


def parts_of(pipeline: Any) -> Mapping[str, Any]:
    """What a pipeline consists of, by its own names."""
    found = getattr(pipeline, "components", None)
    if not isinstance(found, Mapping):
        raise ModelError(
            f"expected a diffusers pipeline, whose components say what it is made of; got {pipeline!r:.80}"
        )
    return found


def denoiser_of(pipeline: Any) -> tuple[str, nn.Module]:
    """The one denoiser of a pipeline and what it is called there."""
    parts = {
        name: getattr(part, "_orig_mod", part) for name, part in parts_of(pipeline).items()
    }  # behind torch.compile
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and denoises(part)}
    kind = type(pipeline).__name__
    if not found:
        raise ModelError(
            f"{kind} has no denoiser among {', '.join(parts_of(pipeline))}: nothing is called with a time."
        )
    if len(found) > 1:
        raise ModelError(
            f"{kind} has several denoisers ({', '.join(found)}), which take over from each other: attach each of them,"
            f" interp.attach(pipe.{next(iter(found))}), and watch both around one run."
        )
    return next(iter(found.items()))
