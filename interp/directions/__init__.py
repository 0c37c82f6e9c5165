"""Directions and subspaces of a site: found and exchanged (`directions`), how few a head needs (`subspace`), which
carry a variable (`das`).
"""

from __future__ import annotations

from interp.directions.das import das
from interp.directions.directions import Exchange, exchange, mean_difference, random_like
from interp.directions.subspace import subspace

__all__ = ["Exchange", "das", "exchange", "mean_difference", "random_like", "subspace"]
