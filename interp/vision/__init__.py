"""Vision and vision-language heads: what they see, what they miss, and changing that.

`sinks` finds visual sinks and image-centric heads, `redistribute` gives their weight back to the image (VAR), and
`hide_sinks` says what they are worth. `divergence` says how much each head's output turns on the picture (VHD), and
`reinforce` makes those heads louder (VHR). `contrast` decodes two branches of one model held against each other; `pai`,
`paint` and `damro` are its branches after three papers.
"""

from __future__ import annotations

from interp.vision.decoding.contrast import contrast
from interp.vision.decoding.damro import damro
from interp.vision.decoding.pai import pai
from interp.vision.decoding.paint import paint
from interp.vision.divergence import divergence
from interp.vision.hide_sinks import hide_sinks
from interp.vision.redistribute import redistribute
from interp.vision.reinforce import reinforce
from interp.vision.sinks import sinks

__all__ = ["contrast", "damro", "divergence", "hide_sinks", "pai", "paint", "redistribute", "reinforce", "sinks"]
