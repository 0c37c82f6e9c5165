"""Whether transformers' own class, built from a config, has the shapes of a cut model; and the config that says so."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interp.pruning.remains import Rest

if TYPE_CHECKING:
    from interp.model import Model


def fits(module: nn.Module, config: Any) -> bool:
    """Whether the class with this config has the parameters that the module has, by name and shape."""
    if not hasattr(module, "save_pretrained"):
        return False
    try:
        with torch.device("meta"):
            fresh = type(module)(copy.deepcopy(config))
    except ValueError:  # a width that its number of heads does not divide
        return False
    return _shapes(fresh) == _shapes(module)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in module.named_parameters()}


def refit(own: Model, rests: Mapping[str, list[Rest]]) -> bool:
    """Write the new numbers of heads into the cut model's config, if all layers agree and the class goes by them."""
    module = own.module
    config = getattr(module, "config", None)
    if config is None or not hasattr(module, "save_pretrained"):
        return False
    new = copy.deepcopy(config)
    for found in rests.values():
        numbers = {(len(one.heads), len(one.groups), one.layer.d_head) for one in found}
        if len(numbers) > 1 or not _told(module, config, new, found[0], *numbers.pop()):
            return False
    if not fits(module, new):
        return False
    for old, now in zip(_parts(config), _parts(new), strict=True):
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
            if hasattr(now, name) and getattr(now, name) != getattr(old, name, None):
                setattr(old, name, getattr(now, name))
    return True


def _parts(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None:
            yield from _parts(inner)


def _told(module: nn.Module, config: Any, new: Any, one: Rest, heads: int, groups: int, d_head: int) -> bool:
    """Whether the tower's own part of the config was found and told."""
    own = getattr(module.get_submodule(one.layer.attention), "config", None)
    for old, now in zip(_parts(config), _parts(new), strict=True):
        if old is own and hasattr(now, "num_attention_heads"):
            if heads == one.layer.heads:
                return True
            now.num_attention_heads = heads
            if hasattr(now, "num_key_value_heads"):
                now.num_key_value_heads = groups
            if getattr(now, "head_dim", None) is None:
                now.head_dim = d_head
            return True
    return heads == one.layer.heads
