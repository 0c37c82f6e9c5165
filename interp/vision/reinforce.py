"""Vision-aware head reinforcement (VHR): heads that turn on the picture are made louder, layer by layer in one pass.

He et al., ACL 2025 (arXiv 2412.13949). In each chosen layer, in order, a head's D is taken against the question alone
while the layers before are reinforced already (`interp.vision.divergence` has D and its outlier rule), and the outputs
of the layer's heads above its median are multiplied by `alpha`, before the output projection, at the last token of the
prompt and at every token that is generated. Heads are chosen at the first token and stay. The paper's layers are the
second and the last 14 of 32 in LLaVA-1.5 and LLaVA-NeXT, the last 18 in InstructBLIP; `layers` is for other models to
choose, and that share of a model's depth unless given. Its alpha is 2; at 4 captions collapsed, at 0.5 and below they
hallucinate more.
Cost: two forward passes before the text is generated (the paper has one: its generating pass chooses as it goes).
Limits: the paper does not say whether the run without a picture is reinforced, nor whether earlier tokens of the prompt
are: here neither is. Layers of cross-attention are left out; families whose forward wants pixels (BLIP-2) are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.edits.edits import Scale
from interp.hooks.edits.functions import Apply
from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, head_name
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.decoding.apart import divergence_of, last_of, top_half, unseen
from interp.vision.decoding.without import Looking, image_tokens, looking_tower

if TYPE_CHECKING:
    from interp.model import Model

LATE = 14 / 32
"""The share of layers, from the end, that the paper reinforces in addition to the second."""


@dataclass(frozen=True, eq=False)
class Reinforced(HeadResult):
    """D of the heads of the chosen layers with those before them reinforced, which were chosen, and the edits."""

    STEM, TITLE = "reinforced", "vision-aware divergence"

    sites: tuple[str, ...]
    values: Tensor
    """D [head, example]: the distance of the head's output z with the picture from that without it, heads before it
    reinforced; 0 for negative outliers, where these were looked for."""
    chosen: Tensor
    """Bool [head, example]: above the median of the layer."""
    alpha: float
    """What the outputs of chosen heads are multiplied by."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def edits(self) -> tuple[Scale, ...]:
        """One a layer, for `m.run` and `m.generate` on the same inputs."""
        return scaled(self.sites, self.chosen, self.alpha)

    def tables(self) -> Sequence[HeadTable]:
        """D of each head, and in how many examples it was chosen."""
        return (HeadTable(self.sites, self.values, "vhr", more={"chosen": self.chosen.double().mean(1)}),)

    def __repr__(self) -> str:
        return (
            f"Reinforced: {int(self.chosen.any(1).sum())} of {len(self.sites)} heads times {self.alpha:g} in some of"
            f" {self.values.shape[1]} examples"
        )


def reinforce(
    model: Model,
    inputs: Any,
    *,
    alpha: float = 2.0,
    layers: Iterable[int] | None = None,
    outliers: bool = True,
) -> Reinforced:
    """Choose heads for these inputs; then `m.generate(inputs, edits=r.edits)`."""
    if not 0 <= alpha < float("inf"):
        raise InputsError(f"alpha= is what head outputs are multiplied by, 0 or more; got {alpha}.")
    what = "vision-aware reinforcement"
    x, _ = image_tokens(model, inputs, what=what)
    tower = looking_tower(model, what=what, crossed=True)
    wanted = _layers(tower, layers)
    alone, last = unseen(model, x, tower, what=what), x.mask("last")
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def louder(layer: int, z: Tensor) -> Tensor:
        values, _ = divergence_of(last_of(z, last), alone[layer], outliers=outliers)
        found[layer] = values, top_half(values)
        return z * _factor(found[layer][1], alpha).to(z)

    edits = [
        Apply(f"{tower.prefix}L{layer.index}.z", partial(louder, layer.index), positions="last")
        for layer in tower.layers
        if layer.index in wanted
    ]
    model.run(x, edits=edits)
    sites = [head_name(tower.name, n, head) for n, (values, _) in sorted(found.items()) for head in range(len(values))]
    values, chosen = (torch.cat([found[n][part] for n in sorted(found)]) for part in (0, 1))
    meta = {**about(model.module, x), "method": "vhr", "layers": sorted(wanted), "outliers": outliers}
    return Reinforced(tuple(sites), finite(values, "differences of head outputs"), chosen, float(alpha), meta=meta)


def _layers(tower: Looking, given: Iterable[int] | None) -> set[int]:
    known = [layer.index for layer in tower.layers]
    if given is None:
        depth = max(known) + 1
        return {n for n in known if n == 1 or n >= depth - max(1, round(LATE * depth))}
    found = set(given)
    if not found or found - set(known):
        raise InputsError(f"layers= are some of {known}, at least one; got {sorted(found)}.")
    return found


def _factor(chosen: Tensor, alpha: float) -> Tensor:
    """[example, 1, head, 1]: alpha for the chosen heads, 1 for the others."""
    return torch.where(chosen.T, alpha, 1.0)[:, None, :, None]


def scaled(sites: Sequence[str], chosen: Tensor, alpha: float) -> tuple[Scale, ...]:
    """Chosen heads [head, example] times alpha, at the last token and every one after it."""
    edits, start = [], 0
    for name, heads in by_layer(sites).items():
        own, start = chosen[start : start + len(heads)], start + len(heads)
        edits.append(Scale(f"{name}.z", _factor(own, alpha), positions="last", onward=True))
    return tuple(edits)


register(
    Method(
        "interp.vision.reinforce",
        number="Euclidean distance of a head's output with the picture from that without it, earlier layers reinforced",
        shown="map",
        label="vhr",
        signed=False,
        papers=("2412.13949",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 2,
        example=lambda t: reinforce(t.model, t.base),
    )
)
