"""Denoisers that are run in a way that cannot be looked into, with the reason."""

from __future__ import annotations

from torch import nn

TURNED = ("ErnieImageTransformer2DModel",)
"""Classes whose residual has its positions before its rows."""


def why_not(module: nn.Module) -> str | None:
    """Why a model of diffusers cannot be held as it is; None where nothing speaks against it, and for all others."""
    if type(module).__name__ in TURNED:
        return f"the residual of {type(module).__name__} is [position, row, d], and every site is [row, position, d]"
    for name, child in module.named_modules():
        if getattr(getattr(child, "processor", None), "_parallel_config", None) is not None:
            return (
                f"{name} attends in context parallel, where each device sees a part of the sequence only: load the"
                " denoiser anew, on one device"
            )
        hooks = getattr(child, "_diffusers_hook", None)
        if hooks is not None and hooks.get_hook("layerwise_casting") is not None:
            return (
                f"{name} keeps its weights in another dtype than it computes in (layerwise casting), so what a head"
                " writes cannot be compared with them: load the denoiser in the dtype that it computes in"
            )
    return None
