"""How much each head's output turns on the picture: vision-aware head divergence (VHD), and how much all do (T-VHD).

He et al., ACL 2025 (arXiv 2412.13949). D_h = | z_h(with the picture) - z_h(without it) |_2 at the last token, z before
the output projection, image tokens removed rather than hidden; negative outliers of a layer are put to 0
(`interp/vision/decoding/apart.py` has the rule). T-VHD of an example is the sum over layers of its k largest: small
where a text goes on from words alone. The paper does not state its k, so `total(k)` asks for one.
Cost: two forward passes, one of them without the picture.
Limits: z is before the output projection, so a head whose output matrix lets nothing through can still have a large
value (null heads of `zoo:planted-lvlm` have 0.4 of what its one head that copies colours has); positions differ between
the two runs, so heads that look at distances differ for that reason too; a large value says that the picture changes
what the head writes, not that this is right or is used. Layers of cross-attention, which do not run without a picture,
are left out. Families whose forward wants pixels (BLIP-2) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.head_names import layer_number
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.decoding.apart import divergence_of, sites_of, unseen
from interp.vision.decoding.without import image_tokens, looking_tower

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Divergence(HeadResult):
    """D of each head and example."""

    STEM, TITLE = "divergence", "vision-aware divergence"

    sites: tuple[str, ...]
    values: Tensor
    """[head, example]: the distance of the head's output z with the picture from that without it; 0 for negative
    outliers, where these were looked for."""
    outliers: Tensor
    """Bool [head, example]: negative outliers of their layer."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def total(self, k: int) -> Tensor:
        """T-VHD [example]: the k largest of each layer, summed over layers."""
        if k < 1:
            raise InputsError(f"k is how many heads of each layer count, at least 1; got {k}.")
        layers = torch.tensor([layer_number(site) for site in self.sites])
        each = (self.values[layers == n] for n in layers.unique())
        return torch.stack([some.topk(min(k, len(some)), dim=0).values.sum(0) for some in each]).sum(0)

    def tables(self) -> Sequence[HeadTable]:
        """D of each head, and in how many examples it is a negative outlier."""
        return (HeadTable(self.sites, self.values, "vhd", more={"outlier": self.outliers.double().mean(1)}),)

    def __repr__(self) -> str:
        mean = self.values.mean(1)
        return (
            f"Divergence of {len(self.sites)} heads on {self.values.shape[1]} examples: largest"
            f" {self.sites[int(mean.argmax())]} with {float(mean.max()):.3g}, median {float(mean.median()):.3g}"
        )


def divergence(model: Model, inputs: Any, *, outliers: bool = True) -> Divergence:
    """Every head of the text tower; `outliers=False` keeps the negative outliers' values."""
    what = "vision-aware divergence"
    x, _ = image_tokens(model, inputs, what=what)
    tower = looking_tower(model, what=what, crossed=True)
    alone = unseen(model, x, tower, what=what)
    tape = model.run(x, record=sites_of(tower), positions="last")
    parts = [
        divergence_of(tape[site][:, 0], alone[layer.index], outliers=outliers)
        for layer, site in zip(tower.layers, sites_of(tower), strict=True)
    ]
    values, negative = (torch.cat(some) for some in zip(*parts, strict=True))
    meta = {**about(model.module, x), "method": "vhd", "outliers": outliers}
    return Divergence(tuple(tower.names), finite(values, "differences of head outputs"), negative, meta=meta)


register(
    Method(
        "interp.vision.divergence",
        number="Euclidean distance of a head's output with the picture from that without it",
        shown="map",
        label="vhd",
        signed=False,
        papers=("2412.13949",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 2,
        example=lambda t: divergence(t.model, t.base),
    )
)
