"""Numbers that are numbers: a result never carries the NaN of a model or of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.hooks.errors import ModelError


def finite(values: Tensor, what: str) -> Tensor:
    """The values, or an error that says where they come from."""
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"{what} are not finite: the model overflows or has a NaN in its weights or inputs. Look for it with"
            " m.check(), or run in float32."
        )
    return values
