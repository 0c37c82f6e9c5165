"""Vision and vision-language heads: what they see, what they miss, and changing that."""

from __future__ import annotations

__all__: list[str] = []
