"""What every method of this room asks of a model: that it is a denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.hooks.denoisers.calls import denoises
from interp.hooks.errors import ModelError
from interp.records import KINDS, Kind

if TYPE_CHECKING:
    from interp.model import Model

NOT_HERE: dict[Kind, str] = dict.fromkeys(KINDS, "it is no denoiser, which has steps of sampling")
"""Why methods of this room refuse every other kind of model."""


def refuse_other(model: Model) -> None:
    """Raise for what is no denoiser."""
    if not denoises(model.module):
        raise ModelError(
            f"{type(model.module).__name__} is no denoiser of diffusers: it has no steps of sampling and no guidance."
            " Attach a pipeline, or its transformer or unet."
        )
