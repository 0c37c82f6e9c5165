"""Vision and vision-language heads: what they see, what they miss, and changing that.

`sinks` finds visual sinks and image-centric heads, `redistribute` gives their weight back to the image (VAR), and
`hide_sinks` says what they are worth. `divergence` says how much each head's output turns on the picture (VHD), and
`reinforce` makes those heads louder (VHR). `contrast` decodes two branches of one model compared with each other;
`pai`, `paint` and `damro` are its branches after three papers. `heads` says which heads look at the picture, where, and
whether it counts; `ground` and `carve` look for what a question is about; `token_importance` goes on with the image
tokens that matter, and `search_pruning` looks for how many to keep where; `perturb`, `mixing` and `adversarial` spoil
the picture and see what moves; `probe` reads tokens with attention, `concepts` sorts patches.
"""

from __future__ import annotations

from interp.vision.decoding.contrast import contrast
from interp.vision.decoding.damro import damro
from interp.vision.decoding.pai import pai
from interp.vision.decoding.paint import paint
from interp.vision.divergence import divergence
from interp.vision.heads import heads
from interp.vision.hide_sinks import hide_sinks
from interp.vision.maps.carve import carve
from interp.vision.maps.ground import ground
from interp.vision.probes.concepts import concepts
from interp.vision.probes.probe import probe
from interp.vision.redistribute import redistribute
from interp.vision.reinforce import reinforce
from interp.vision.robust.adversarial import adversarial
from interp.vision.robust.mixing import mixing
from interp.vision.robust.perturb import perturb
from interp.vision.sinks import sinks
from interp.vision.tokens.importance import token_importance
from interp.vision.tokens.search import search_pruning

__all__ = [
    "adversarial", "carve", "concepts", "contrast", "damro", "divergence", "ground", "heads", "hide_sinks", "mixing",
    "pai", "paint", "perturb", "probe", "redistribute", "reinforce", "search_pruning", "sinks", "token_importance",
]  # fmt: skip
