"""The explorer: heads of a model in one page that works without a network, in a notebook, and as a still picture."""

from __future__ import annotations

from interp.explorer.explore import Explorer, explore

__all__ = ["Explorer", "explore"]
