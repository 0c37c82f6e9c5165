"""Paying attention to the image (PAI): scores of image tokens raised where the next token is made, against text alone.

Liu et al., ECCV 2024 (arXiv 2407.21771). In the last query row of the prompt and in every row after it, in layers from
the third on, scores s of image tokens become s + alpha |s| before the softmax (`interp.edits.Emphasize`), and what is
said is compared with a branch without the picture, under no edit: gamma log p + (1 - gamma) log p', where log p >= log
cutoff + max log p. Defaults are the authors' code: alpha 0.2, gamma 1.1, cutoff 0.1, layers 2 and later. The number
gamma is 1 + the amount of `interp.vision.contrast`, which this returns; `.edits` is the emphasis alone. Cost: two
forward passes a token, a pass of each branch. Limits: |s| depends on the size of a model's scores, so alpha means
another thing in another model; image tokens that are among the words (no cross-attention). Families whose forward wants
pixels (BLIP-2) have no branch without them: for these ask for gamma=1, the emphasis alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.vision.decoding.contrast import Contrast
from interp.vision.decoding.looks import held_against_text, raised
from interp.vision.decoding.without import image_tokens, looking_tower

if TYPE_CHECKING:
    from interp.model import Model

FIRST_LAYER = 2


def pai(
    model: Model,
    inputs: Any,
    *,
    alpha: float = 0.2,
    gamma: float = 1.1,
    cutoff: float = 0.1,
    first_layer: int = FIRST_LAYER,
    heads: Iterable[str] | None = None,
) -> Contrast:
    """Both branches, ready to run: `.generate()`, `.scores()`, `.edits`. `heads` keeps the emphasis to some."""
    x, _ = image_tokens(model, inputs, what="PAI")
    tower = looking_tower(model, what="PAI")
    edits = raised(tower, [("image", alpha)], first_layer=first_layer, heads=heads)
    return held_against_text(model, x, edits, gamma=gamma, cutoff=cutoff, what="PAI")


register(
    Method(
        "interp.vision.pai",
        number="scores of tokens with the image emphasised, compared with those without it",
        shown="none",
        papers=("2407.21771",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 2,
        values=None,
        made_of=("interp.vision.contrast",),
        example=lambda t: pai(t.model, t.base, first_layer=1).scores(),
    )
)
