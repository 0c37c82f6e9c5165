"""Redistribution of visual attention (VAR): what heads spend on sinks goes to the rest of the image, as edits.

Kang et al., ICLR 2025 (Visual Attention Sink, arXiv 2503.03321). `interp.vision.sinks` finds the sinks of each layer;
in rows and heads that are image-centric there, `fraction_moved` of the weight on all sinks of the layer, <bos> among
them, goes to image tokens that are none, in proportion (`interp.edits.Refocus`, which has the formulas and what is
known of the paper's p). Rows are those after each example's last image token, and every token that is generated.
As the paper says, the last layer stays as it is, and a layer without a visual sink in an example as well, as in the
authors' code; their code never leaves out the last layer, which is `last_layer=True`.
Cost: that of the sinks, if they are not given; as edits, a pass with statistics in addition to each changed layer's
attention. Limits: sinks are those of the model as it is, at the prompt, and stay while decoding; of image tokens with a
place in the picture. On one independent re-run it made captions worse (CHAIR_S 48.6 to 52.5): measure what it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.edits.refocus import Refocus
from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, spelled_together
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.vision.decoding.without import image_tokens, looking_tower, placed_on_a_grid
from interp.vision.sinks import LEAST, VisualSinks, fitting

if TYPE_CHECKING:
    from interp.model import Model


def redistribute(
    model: Model,
    inputs: Any,
    sinks: VisualSinks,
    *,
    fraction_moved: float = 0.4,
    rho: float = 0.5,
    least: float = LEAST,
    heads: Iterable[str] | None = None,
    last_layer: bool = False,
) -> tuple[Refocus, ...]:
    """One edit for each layer that has visual sinks; `heads` keeps it to some. For `m.run`, `m.generate`, sweeps."""
    x, image = image_tokens(model, inputs, what="redistribution")
    tower = looking_tower(model, what="redistribution")
    placed_on_a_grid(x, image, what="redistribution")
    fitting(sinks, image)
    some = by_layer(tower.names if heads is None else heads)
    rows = after_the_image(x.valid.cpu(), image.cpu())
    found = []
    for n, layer in enumerate(sinks.layers):
        name = f"{tower.prefix}L{layer}"
        known = sinks.visual[n].any(1, keepdim=True) & sinks.sinks[n]
        if bool(known.any()) and name in some and (last_layer or layer != sinks.layers[-1]):
            site = spelled_together(name, some[name])
            found.append(
                Refocus(site, sinks=known, image=image.cpu() & known.any(1, keepdim=True), positions=rows, onward=True,
                        fraction_moved=fraction_moved, least=least, rho=rho)
            )  # fmt: skip
    if not found:
        raise InputsError(
            f"no layer that may be changed has a visual sink here: phi reaches {float(sinks.phi.max()):.3g}, a sink"
            f" needs {sinks.tau:g} (dimensions {list(sinks.dims)}), so no weight can be redistributed."
        )
    return tuple(found)


def after_the_image(valid: Tensor, image: Tensor) -> Tensor:
    """Bool [example, position]: real tokens behind the last image token; all words where the model puts none there."""
    later = image.flip(1).cumsum(1).flip(1) == 0
    found = valid & later
    return torch.where(found.any(1, keepdim=True), found, valid & ~image)


register(
    Method(
        "interp.vision.redistribute",
        number="edits that move weight from sinks to the image",
        shown="none",
        papers=("2503.03321",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 1.5,
        values=None,
        made_of=("interp.vision.sinks",),
        example=lambda t: t.model.run(
            t.base, edits=redistribute(t.model, t.base, t.of("interp.vision.sinks"), last_layer=True)
        )["logits"],
    )
)
