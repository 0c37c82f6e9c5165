"""Heads of diffusers' denoisers over the steps of a pipeline: where words reach, and what perturbed heads do.

`interp.attach(pipe)` holds the denoiser of a pipeline, `m.watch(record=..., steps=...)` around `pipe(...)` records and
edits its calls. Here are `perturbed` (guidance by heads that look at themselves), `hunt` (which heads to perturb),
`maps` and `refer` (where words are in the picture), `columns` (the tokens of a word) and `encoders`. `unmask` is
the same of words: models of text that fill masks step by step.
"""

from __future__ import annotations

from interp.diffusion.columns import columns
from interp.diffusion.encoders import encoders
from interp.diffusion.hunt import Hunt, hunt
from interp.diffusion.maps import Maps, maps
from interp.diffusion.perturbed import perturbed
from interp.diffusion.refer import pointing, refer
from interp.diffusion.unmask import unmask

__all__ = ["Hunt", "Maps", "columns", "encoders", "hunt", "maps", "perturbed", "pointing", "refer", "unmask"]
