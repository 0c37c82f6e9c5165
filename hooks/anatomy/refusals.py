"""Models that cannot be looked into as they are, refused before anything runs."""

from __future__ import annotations

from torch import nn

from interp.hooks.anatomy.attributes import refuse_attributes
from interp.hooks.anatomy.spread import refuse_stages
from interp.hooks.denoisers.refused import why_not
from interp.hooks.errors import ModelError


def refuse(module: nn.Module) -> None:
    """Raise for train mode, for weights that are not there, and for what a config says that would be misread."""
    refuse_attributes(module)
    refuse_stages(module)
    if (why := why_not(module)) is not None:
        raise ModelError(f"{why}.")
    training = [
        name or type(module).__name__ for name, child in module.named_modules() if child.training and _random(child)
    ]
    if training:
        raise ModelError(
            f"{training[0]} is in train mode, where dropout changes every number:"
            " call model.eval() first (attach never does)."
        )
    empty = [name for name, p in module.named_parameters() if p.device.type == "meta"]
    if empty and not _offloaded(module):
        raise ModelError(
            f"the parameter {empty[0]} is on the meta device, without values: load the weights first."
            " An nnsight model that runs elsewhere is held by interp.scale.hosted(model, remote=True)."
        )


def _random(child: nn.Module) -> bool:
    """Whether being in train mode changes what the module computes; plain containers do not count."""
    dropout = any(
        isinstance(getattr(child, name, None), float) and getattr(child, name) > 0
        for name in ("p", "dropout", "attention_dropout", "activation_dropout")
    )
    return (
        dropout
        or type(child).__name__.endswith(("Dropout", "DropPath", "BatchNorm2d"))
        or next(child.children(), None) is not None
    )


def _offloaded(module: nn.Module) -> bool:
    """accelerate keeps offloaded weights on meta and brings them in for each call."""
    return any(hasattr(child, "_hf_hook") for child in module.modules())
