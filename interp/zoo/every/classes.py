"""From a model type to a tiny random model of it.

The config a type comes with is shrunk (`sizes`), what is said of the type by name is put into it (`own`), and the class
is the first of transformers' own lists that has the type. Nothing is downloaded. Cost: a tenth of a second to two
seconds a type. Limits: a type that cannot be built so says why; that says nothing about the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from interp.hooks.errors import ModelError
from interp.zoo.every.cannot import CANNOT, NEEDS
from interp.zoo.every.own import CLASSES, GIVEN, OWN
from interp.zoo.every.said import put
from interp.zoo.every.sizes import shrink

LISTS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "MODEL_MAPPING_NAMES",
)  # fmt: skip
"""transformers' lists of classes by model type, the first that has a type says its class."""
LARGEST = 20_000_000
"""Parameters above which a type counts as not made small."""


def types() -> list[str]:
    """Every model type that has a class of its own to be built."""
    every: dict[str, None] = {}
    for name in LISTS:
        every |= dict.fromkeys(_list(name))
    return sorted(every)


def class_of(model_type: str) -> type[nn.Module]:
    """The class that is built of a type."""
    import transformers

    for name in LISTS:
        found = CLASSES.get(model_type) or _list(name).get(model_type)
        if found is not None:
            found = found if isinstance(found, str) else found[0]
            made: type[nn.Module] = getattr(transformers, found)
            return made
    raise ModelError(f"no class of transformers has the model type {model_type!r}.")


def _list(name: str) -> Mapping[str, Any]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, name))


def config_of(model_type: str) -> Any:
    """The config of a type, shrunk."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **GIVEN.get(model_type, {}))
    shrink(config)
    put(config, OWN.get(model_type, {}))
    return config


def build(model_type: str, *, seed: int = 0) -> nn.Module:
    """A tiny random model of a type, in eval mode; raises what transformers raises where it cannot be built so."""
    if model_type in CANNOT:
        raise ModelError(f"{CANNOT[model_type]}.")
    if missing := [name for name in NEEDS.get(model_type, ()) if find_spec(name) is None]:
        raise ModelError(f"it needs {' and '.join(missing)}, which is not installed.")
    cls, config = class_of(model_type), config_of(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > LARGEST:
        raise ModelError(f"{size:,} parameters are left of {model_type!r}: its config was not made small.")
    torch.manual_seed(seed)
    made: nn.Module = cls(config).eval()
    return made
