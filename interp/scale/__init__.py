"""Past one machine: shards of one call merged into its result, and how far a directory is."""

from __future__ import annotations

__all__: list[str] = []
