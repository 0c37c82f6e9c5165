"""Exact interventions: run the base, put in what the source had, read the metric.

`patch` (a site, head or group at a time), `path_patch` (along one path), `direct_effect` (straight to the logits),
`knockout` (an attention edge cut), `lens` (what the residual already says; `lenses/` has those that are fitted). Below
them: `cells`, `sources`, `alignment`, `paths`, and `exact`, which holds answers against full passes."""

from __future__ import annotations

from interp.patching.alignment import align
from interp.patching.direct_effect import direct_effect
from interp.patching.knockout import knockout
from interp.patching.lenses.backward import backward_lens
from interp.patching.lenses.jacobian import jacobian_lens
from interp.patching.lenses.lens import lens
from interp.patching.lenses.tuned import tuned_lens
from interp.patching.patch import patch
from interp.patching.path_patch import path_patch
from interp.patching.sources import Average, Noise
from interp.results.effects import Effects

__all__ = [
    "Average", "Effects", "Noise", "align", "backward_lens", "direct_effect", "jacobian_lens", "knockout", "lens",
    "patch", "path_patch", "tuned_lens",
]  # fmt: skip
