"""How far logits are from the model's own: the loss of what is fitted where no answer is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.inputs.inputs import Inputs
from interp.metrics.shipped import KL

if TYPE_CHECKING:
    from interp.model import Model


def own_divergence(model: Model, x: Inputs) -> Callable[[Tensor, Any], Tensor]:
    """KL(model's own || logits) [row], the mean over every real position; one pass of the model as it is."""
    logits = model.run(x)["logits"]
    if logits.ndim == 2:
        return KL.to(logits, x, negate=False).__call__
    real = x.valid.sum(1).tolist()
    return KL.to(logits, x, positions=tuple(tuple(range(-n, 0)) for n in real), negate=False).__call__
