"""What a config says other than by default, by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Said = Mapping[str, Mapping[str, Any]]
FOUR: Mapping[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
"""Two heads of eight numbers each."""
