"""What a model forgot, and what is left of it: weights dampened so that it forgets (`dampen`), heads masked for a task
(`tune_masks`), and a model compared with the one before: representations and probes (`compare_models`), activations put
across (`patch_across`), answers read off its layers (`lens_attack`).
"""

from __future__ import annotations

from interp.forgetting.compare_models import ModelsCompared, compare_models
from interp.forgetting.dampen import dampen
from interp.forgetting.dampened import Dampened
from interp.forgetting.lens_attack import LensAttack, lens_attack
from interp.forgetting.patch_across import AcrossModels, patch_across
from interp.forgetting.tune_masks import tune_masks

__all__ = [
    "AcrossModels", "Dampened", "LensAttack", "ModelsCompared", "compare_models", "dampen", "lens_attack",
    "patch_across", "tune_masks",
]  # fmt: skip
