"""What visual sinks are worth: the metric with them hidden from every head, compared with as many random image tokens
hidden.

Kang et al., ICLR 2025 (arXiv 2503.03321) find that hiding visual sinks from the words does no harm, and hiding as many
other image tokens does. Here the visual sinks of each layer (`interp.vision.sinks`) lose all weight in the rows behind
the image, in all heads of the layer; the control hides in the same layers and examples as many image tokens that are no
sinks, drawn anew `draws` times. effect = metric(hidden) - metric(base).
Cost: two forward passes and one a draw.
Limits: a sink is where weight rests, so hiding it moves more weight than hiding a random token: `weight` says how much
the last row gives to each set. Where a layer has no visual sink nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import MaskKeys
from interp.hooks.errors import InputsError
from interp.metrics.edited import EditedScores
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.saved import Saved
from interp.sink.beside_random import BesideRandom
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.redistribute import after_the_image
from interp.vision.sinks import VisualSinks, fitting

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class HiddenSinks(BesideRandom, Saved):
    """Effects of hiding visual sinks [example] and of hiding random image tokens [draw, example]."""

    STEM = "hidden_sinks"

    layers: tuple[int, ...]
    """Those that have a visual sink in some example."""
    tokens: float
    """Tokens hidden per such layer and example, on average."""
    base: Tensor
    sinks: Tensor
    random: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"HiddenSinks: {self.tokens:.2g} tokens in each of {len(self.layers)} layers: visual sinks"
            f" {float(self.sinks.mean()):+.4g}, random image tokens {float(self.random.mean()):+.4g} (base"
            f" {float(self.base.mean()):.4g}); {self.share:.0%} of {len(self.random)} draws do as much"
        )


def hide_sinks(
    model: Model, inputs: Any, *, metric: Metric, sinks: VisualSinks, draws: int = 20, seed: int = 0
) -> HiddenSinks:
    """Hide the visual sinks that `interp.vision.sinks` found on the same inputs, then as many random image tokens."""
    if draws < 1:
        raise InputsError(f"draws= is how many sets of random tokens are compared with, at least 1; got {draws}.")
    x, image = image_tokens(model, inputs, what="hiding visual sinks")
    fitting(sinks, image)
    tower = looking_tower(model, what="hiding visual sinks")
    found = sinks.visual
    if not bool(found.any()):
        raise InputsError(f"there is no visual sink to hide: phi reaches {float(sinks.phi.max()):.3g} of {sinks.tau}.")
    rows = after_the_image(x.valid.cpu(), image.cpu())
    random = torch.Generator().manual_seed(seed)
    scores = EditedScores(model, x, metric)

    def hidden(sets: Tensor) -> Tensor:
        places = [
            MaskKeys(f"{tower.prefix}L{layer}.H*", keys=keys, positions=rows)
            for layer, keys in zip(sinks.layers, sets, strict=True)
            if bool(keys.any())
        ]
        return scores(places) - scores.base

    drawn = [other_tokens(found, sinks.image & ~sinks.sinks, random) for _ in range(draws)]
    some = found.any(-1)
    return HiddenSinks(
        tuple(layer for layer, has in zip(sinks.layers, some.any(1).tolist(), strict=True) if has),
        float(found.sum() / some.any(1).sum() / len(image)), scores.base, hidden(found),
        torch.stack([hidden(one) for one in drawn]),
        meta={**about(model.module, x), "method": "visual sinks hidden", "seed": seed, "metric": metric_name(metric)},
    )  # fmt: skip


def other_tokens(found: Tensor, free: Tensor, random: torch.Generator) -> Tensor:
    """Bool [layer, example, position]: for each layer and example as many free tokens as were found there."""
    count = found.sum(-1, keepdim=True)
    if bool((free.sum(-1, keepdim=True) < count).any()):
        raise InputsError("there are fewer other image tokens than visual sinks, so there is no control of that size.")
    order = torch.rand(found.shape, generator=random).masked_fill(~free, 2.0).argsort(-1).argsort(-1)
    return order < count


register(
    Method(
        "interp.vision.hide_sinks",
        number="effect on the metric of all visual sinks hidden, with the effect of as many random image tokens",
        shown="bars",
        papers=("2503.03321",),
        needs=("metric", "result"),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 2 + 2,
        values="sinks",
        made_of=("interp.vision.redistribute", "interp.vision.sinks"),
        example=lambda t: hide_sinks(t.model, t.base, metric=t.metric, sinks=t.of("interp.vision.sinks"), draws=2),
    )
)
