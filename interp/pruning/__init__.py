"""Heads removed from a model: `choose` which, mask or `cut` them, judge by a `curve`, keep on disk (`directory`)."""

from __future__ import annotations

from interp.pruning.prune import prune

__all__ = ["prune"]
