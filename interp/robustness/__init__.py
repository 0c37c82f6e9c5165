"""How much depends on the exact attention: the worst change of scores or patterns in a radius, and random changes
of the same norm (`perturb_attention`; how a direction is found is in `directions`)."""

from __future__ import annotations

from interp.robustness.perturb_attention import perturb_attention
from interp.robustness.result import AttentionPerturbation

__all__ = ["AttentionPerturbation", "perturb_attention"]
