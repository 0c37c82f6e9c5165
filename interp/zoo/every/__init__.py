"""Every model type of the installed transformers, tiny and random, from its config class alone: the `classes` and what
builds them, the `sizes` their numbers shrink to, what is said of a type by name (`own`), and what `cannot` be built."""

from __future__ import annotations

from interp.zoo.every.classes import build, class_of, config_of, types

__all__ = ["build", "class_of", "config_of", "types"]
