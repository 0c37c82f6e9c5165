"""PAINT: PAI with two kinds of image tokens, those that hold detail and those that sum up, each raised by its own.

Arif et al. 2025 (arXiv 2501.12206), as in the code of its authors. The vision tower's class token looks at patches, in
layer k with weights a_k:

    local     the quarter with the largest  sum over heads of a_0           but for those of the summary
    summary   u_j > Q3 + 1.5 (Q3 - Q1),     u = sum over heads of a_(-2),   the last layer but one

In the last row of the prompt and every row after it, from the third layer of the text on, scores become s + alpha |s|
on local tokens and s + beta |s| on the summary's, and the result is compared with PAI's branch without the picture
(gamma 1.1). alpha 0.7 and beta 0.4 are the paper's best; the released command has beta 0.3. Texts grow long under it
(180 to 210 words) and F1 falls: report length and recall together with hallucination; alpha 0.9 collapses. The released
code also has a spatial stream by the summed rows of a softmax, which are 1 each, so that it picks arbitrary tokens: it
is left out. The first abstract's modulation by head has no counterpart in the code, nor here. Cost: two forward passes
to find the tokens, then two a token, one of each branch. Of a picture in tiles every view in the text has its own
quarter and its own outliers, a token merged of patches counts by their mean (LLaVA-NeXT, InternVL): ours, the paper has
one view. Limits: vision towers with a class token whose tokens have a place in the picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.vision.decoding.contrast import Contrast
from interp.vision.decoding.looks import held_against_text, raised
from interp.vision.decoding.patches import class_looks, layer_of, seeing_tower, token_looks, views_of
from interp.vision.decoding.without import image_tokens, looking_tower

if TYPE_CHECKING:
    from interp.model import Model


def paint(
    model: Model,
    inputs: Any,
    *,
    alpha: float = 0.7,
    beta: float = 0.4,
    gamma: float = 1.1,
    cutoff: float = 0.1,
    share: float = 0.25,
    first_layer: int = 2,
    summary_layer: int = -2,
    heads: Iterable[str] | None = None,
) -> Contrast:
    """Both branches, ready to run. `heads` keeps the emphasis to some."""
    if not 0 < share <= 1:
        raise InputsError(f"share= of the patches is local, above 0 and at most 1; got {share}.")
    x, _ = image_tokens(model, inputs, what="PAINT")
    tower = looking_tower(model, what="PAINT")
    local, summary = streams(model, x, share=share, summary_layer=summary_layer)
    sets = [(local, alpha), *([(summary, beta)] if bool(summary.any()) else [])]
    edits = raised(tower, sets, first_layer=first_layer, heads=heads)
    return held_against_text(model, x, edits, gamma=gamma, cutoff=cutoff, what="PAINT")


def streams(
    model: Model, x: Inputs, *, share: float, summary_layer: int
) -> tuple[Bool[Tensor, "example position"], Bool[Tensor, "example position"]]:
    """Local and summary tokens among the text's positions."""
    tower, own = seeing_tower(model, x, what="PAINT")
    first, late = tower.layers[0].index, layer_of(tower, summary_layer)
    local, summary = (torch.zeros_like(x.valid.cpu()) for _ in range(2))
    looks = [class_looks(model, x, n, split=True, what="PAINT").sum(1).cpu() for n in (first, late)]
    s, u = (token_looks(x, own, one, what="PAINT") for one in looks)
    for row, _, cells in views_of(x):
        low, high = u[row][cells].quantile(0.25), u[row][cells].quantile(0.75)
        summary[row] |= cells & (u[row] > high + 1.5 * (high - low))
        local[row, s[row].masked_fill(~cells, -torch.inf).topk(int(share * int(cells.sum()))).indices] = True
    return local & ~summary, summary


register(
    Method(
        "interp.vision.paint",
        number="scores of tokens with local and summary image tokens emphasised, compared with those without the image",
        shown="none",
        papers=("2501.12206",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 4,
        values=None,
        made_of=("interp.vision.contrast",),
        example=lambda t: paint(t.model, t.base, first_layer=1).scores(),
    )
)
