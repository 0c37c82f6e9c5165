"""timm where torchvision, which it imports for its transforms, is not there: its models need nothing of it.

What timm imports from torchvision are names for transforms and data sets, and one frozen norm. While timm is imported
here these names are stand-ins that do nothing; the models are timm's own.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from torch import nn

NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets",
         "torchvision.ops", "torchvision.ops.misc", "torchvision.models", "torchvision.models.feature_extraction",
         "torchvision.utils")  # fmt: skip


FILTERS = ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS", "BOX", "HAMMING")


class _StandIn(ModuleType):
    """A module of names; each is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (nn.Module,), dict(zip(FILTERS, FILTERS, strict=True)))
        setattr(self, name, made)
        return made


def timm() -> Any:
    """The library; whoever asks is skipped where it is not installed."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed (the extra timm)")
    if "timm" in sys.modules or find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    for name in NAMES:
        sys.modules[name] = _StandIn(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, sys.modules[name])
    try:
        return importlib.import_module("timm")
    finally:
        for name in NAMES:
            sys.modules.pop(name, None)
