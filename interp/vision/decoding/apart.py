"""What each head writes with the picture and what it writes without, at the last position: vision-aware divergence.

He et al., ACL 2025 (arXiv 2412.13949). With z_h(x) the output of head h before the output projection, at the last token
of the question with its picture (x) and without it (x'; image tokens removed, not hidden):

    D_h = | z_h(x) - z_h(x') |_2,        T_h = | z_h(x') |_2^2
    D_h <- 0   where D_h > mean + std of D over the layer's heads and T_h > mean + std of T        (negative outliers)

Population standard deviations; the paper does not say which. A layer's top heads are those with D_h above its median.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.inputs.inputs import Inputs
from interp.vision.decoding.without import Looking, without_pictures

if TYPE_CHECKING:
    from interp.model import Model


def unseen(model: Model, x: Inputs, tower: Looking, *, what: str) -> Mapping[int, Float[Tensor, "example head d"]]:
    """By layer, what its heads write at the last token of the question alone: one pass."""
    tape = model.run(without_pictures(model, x, what=what), record=sites_of(tower), positions="last")
    return {layer.index: tape[site][:, 0] for layer, site in zip(tower.layers, sites_of(tower), strict=True)}


def sites_of(tower: Looking) -> list[str]:
    """z of each layer, those of cross-attention left out."""
    return [f"{tower.prefix}L{layer.index}.z" for layer in tower.layers]


def divergence_of(
    seen: Float[Tensor, "example head d"], alone: Float[Tensor, "example head d"], *, outliers: bool
) -> tuple[Float[Tensor, "head example"], Bool[Tensor, "head example"]]:
    """D of one layer's heads, and which of them are negative outliers; `outliers` puts these to 0."""
    wide = seen.detach().double(), alone.detach().to(seen.device).double()
    found, size = (wide[0] - wide[1]).norm(dim=-1), wide[1].square().sum(-1)
    negative = _far(found) & _far(size)
    return (found.masked_fill(negative, 0.0) if outliers else found).T.cpu(), negative.T.cpu()


def _far(values: Float[Tensor, "example head"]) -> Bool[Tensor, "example head"]:
    return values > values.mean(1, keepdim=True) + values.std(1, correction=0, keepdim=True)


def top_half(values: Float[Tensor, "head example"]) -> Bool[Tensor, "head example"]:
    """Above the median of the layer, example by example; of an even number it is midway between the two."""
    return values > values.quantile(0.5, dim=0, keepdim=True)


def last_of(z: Any, last: Bool[Tensor, "example position"]) -> Tensor:
    """z [example, position, head, d] at each example's last token."""
    found: Tensor = z[last.to(z.device)]
    return found
