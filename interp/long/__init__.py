"""Long texts: heads that retrieve (`retrieval_heads`, `query_heads`, `contrastive_heads`), what is lost without them
(`mask_heads`), which texts need them (`influence`), and reading on with few keys (`infini_retrieve`, `long_heads`)."""

from __future__ import annotations

from interp.long.contrastive_heads import contrastive_heads
from interp.long.infini_retrieve import infini_retrieve
from interp.long.influence import influence
from interp.long.long_heads import long_heads
from interp.long.mask_heads import mask_heads
from interp.long.query_heads import query_heads
from interp.long.retrieval_heads import retrieval_heads

__all__ = [
    "contrastive_heads", "infini_retrieve", "influence", "long_heads", "mask_heads", "query_heads", "retrieval_heads",
]  # fmt: skip
