"""Denoisers of the installed diffusers, tiny and random, from their configs: `pictures`, `films` and `sounds` say the
sizes of each class, `placed` holds the roles of their tokens against what the model does."""

from __future__ import annotations

from interp.zoo.denoisers.classes import SIZES, build, kinds
from interp.zoo.denoisers.placed import misplaced

__all__ = ["SIZES", "build", "kinds", "misplaced"]
