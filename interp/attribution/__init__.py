"""Estimates of what patching would find, checked against it (`verify`), and what an answer rests on.

`attribute` chooses among the methods `plain`, `path`, `ruled`, `star`; `relevance` (with `rollout`, `relprop`),
`key_spans`, and `agree`, which holds attention weights against attributions.
"""

from __future__ import annotations

from interp.attribution.agree import agree
from interp.attribution.attribute import attribute
from interp.attribution.key_spans import key_spans
from interp.attribution.relevance import relevance

__all__ = ["agree", "attribute", "key_spans", "relevance"]
