"""Where the heads are in a model outside transformers' attention interface, said as data and registered."""

from __future__ import annotations

from interp.hooks.anatomy.family import Family, Projection, Recipe, register

__all__ = ["Family", "Projection", "Recipe", "register"]
