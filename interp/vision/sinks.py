"""Visual sinks, where weight is on image tokens of no content, and the heads that look at the rest of the image.

Kang et al., ICLR 2025 (Visual Attention Sink, arXiv 2503.03321). With x_j the residual that enters a layer at token j

    phi(x) = max over d in D of |x[d]| / RMS(x),     RMS(x) = sqrt(mean_d x[d]^2 + 1e-6)
    sinks of the layer: phi(x_j) >= tau              visual sinks: those among the image tokens V

in layers from the third on (those before have none, as in the authors' code). For the last query row of each head, with
weights A: `mass` = A[V], `ratio` = A[V less its sinks] / A[V], 0 where A[V] is; a head is image-centric for an example
where mass >= 0.2 and ratio >= rho (the paper's settings are 0.5 for hallucination, 0.8 for questions, 0.9 where vision
counts most; their code's `rho` is 1 less this one).
D is found, not looked up: the paper finds that visual sinks have the massive dimensions of <bos>, so D are those where
|x[d]| / RMS(x) >= tau at <bos> (at the first token, where there is none) in at least half of these layers and examples.
That rule is ours. phi is at most sqrt(width): below a width of tau^2 = 400 there are no sinks in this sense.
Cost: two forward passes, one with `dims` given; memory for one number a token and layer, and the last rows' weights.
Limits: self-attention of the text tower with image tokens in it; of the model as it is, before any edit moves weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name, head_place
from interp.hooks.stand.ports import stand_at
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.decoding.without import image_tokens, looking_tower, placed_on_a_grid

if TYPE_CHECKING:
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model

TAU, LEAST, FIRST_LAYER, EPS = 20.0, 0.2, 2, 1e-6


@dataclass(frozen=True, eq=False)
class VisualSinks(HeadResult):
    """Sinks by layer, and how much of each head's look at the image is on tokens that are none."""

    STEM, TITLE = "visual_sinks", "share on image tokens that are no sinks"

    sites: tuple[str, ...]
    mass: Tensor
    """[head, example]: weight of the last row on image tokens."""
    ratio: Tensor
    """[head, example]: the share of it on those that are no sinks; 0 where there is no weight."""
    phi: Tensor
    """[layer, example, position]: the largest size of the residual in one of `dims`, over its root mean square; 0 for
    padding, and in layers before `first_layer`."""
    layers: tuple[int, ...]
    """The numbers of the layers, in the order of `phi`."""
    image: Tensor
    """Bool [example, position]: the image tokens."""
    dims: tuple[int, ...]
    """D; none where no dimension is extreme at the first token, and then there are no sinks."""
    tau: float
    """Tokens whose phi is at least this are sinks."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sinks(self) -> Bool[Tensor, "layer example position"]:
        """All sinks, of text and image."""
        return self.phi >= self.tau

    @property
    def visual(self) -> Bool[Tensor, "layer example position"]:
        """Those among the image tokens."""
        return self.sinks & self.image

    def image_centric(self, *, rho: float = 0.5, least: float = LEAST) -> Bool[Tensor, "head example"]:
        """Heads that give the image `least` of the last row's weight, and `rho` of that to tokens that are no sinks."""
        return (self.mass >= least) & (self.ratio >= rho) & (self.mass > 0)

    def tables(self) -> Sequence[HeadTable]:
        """The ratio of each head, its mass on the image, the visual sinks of its layer, and how often it is
        image-centric."""
        of = {layer: n for n, layer in enumerate(self.layers)}
        counts = self.visual.double().sum(-1).mean(1)
        here = torch.tensor([float(counts[of[head_place(site).layer]]) for site in self.sites])
        centric = self.image_centric().double().mean(1)
        more = {"mass": self.mass.mean(1), "visual_sinks": here, "image_centric": centric}
        return (HeadTable(self.sites, self.ratio, "visual sinks", more=more),)

    def __repr__(self) -> str:
        found = int(self.visual.any(0).sum())
        return (
            f"VisualSinks: dimensions {list(self.dims)}, {found} visual sinks in {len(self.image)} examples, largest"
            f" phi {float(self.phi.max()):.3g} (tau {self.tau:g});"
            f" {int(self.image_centric().any(1).sum())} of {len(self.sites)} heads image-centric at rho 0.5"
        )


def fitting(sinks: VisualSinks, image: Tensor) -> None:
    """Refuse sinks of other inputs."""
    if sinks.image.shape != image.shape or not torch.equal(sinks.image, image.cpu()):
        raise InputsError(
            f"the sinks were found on inputs of {list(sinks.image.shape)} [example, position], these are"
            f" {list(image.shape)} or hold their image elsewhere: give what interp.vision.sinks was given."
        )


def sinks(
    model: Model,
    inputs: Any,
    *,
    tau: float = TAU,
    dims: Iterable[int] | None = None,
    first_layer: int = FIRST_LAYER,
) -> VisualSinks:
    """Find the sinks of every layer. `dims` are sink dimensions that are known already."""
    if not 0 < tau < float("inf"):
        raise InputsError(f"tau= is what phi must reach, above 0; got {tau}.")
    x, image = image_tokens(model, inputs, what="sinks of the image")
    tower = looking_tower(model, what="sinks of the image")
    placed_on_a_grid(x, image, what="sinks of the image")
    valid, layers = x.valid.cpu(), tuple(layer.index for layer in tower.layers)
    known = _dims(dims, tower.width) if dims is not None else _found(model, x, tower, tau, first_layer)
    phi = {n: torch.zeros(valid.shape) for n in layers}
    late = [n for n in layers if n >= first_layer and known]

    def keep(n: int, value: Tensor) -> None:
        phi[n] = _phi(value, known).cpu() * valid

    with _each_residual(model, tower, late, x, keep):
        tape = model.run(x, record=[f"{tower.prefix}L*.pattern"], positions="last")
    sites, mass, ratio = [], [], []
    for layer in tower.layers:
        rows = tape[f"{tower.prefix}L{layer.index}.pattern"][:, :, 0].cpu().double()
        rests = image.cpu() & ~(phi[layer.index] >= tau)
        whole, rest = ((rows * keys[:, None]).sum(-1).T for keys in (image.cpu(), rests))
        mass.append(whole)
        ratio.append(torch.where(whole > 0, rest / whole.clamp(min=1e-30), 0.0))
        sites += [head_name(tower.name, layer.index, head) for head in range(layer.heads)]
    return VisualSinks(
        tuple(sites), finite(torch.cat(mass), "weights on the image"), torch.cat(ratio),
        torch.stack([phi[n] for n in layers]), layers, image.cpu(), known, float(tau),
        meta={**about(model.module, x), "method": "visual sinks", "first_layer": first_layer},
    )  # fmt: skip


def _dims(given: Iterable[int], width: int) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(int(n) for n in given))
    bad = [n for n in found if not 0 <= n < width]
    if bad or not found:
        raise InputsError(f"dims= are dimensions of the residual stream, 0 to {width - 1}, at least one; got {found}.")
    return found


def _found(model: Model, x: Inputs, tower: Any, tau: float, first_layer: int) -> tuple[int, ...]:
    """Dimensions that are large at the first token in half of the layers and examples."""
    bos = x.roles.where("bos").cpu()
    start = torch.where(bos.any(1), bos.int().argmax(1), x.valid.cpu().int().argmax(1))
    apart: list[Tensor] = []

    def keep(n: int, value: Tensor) -> None:
        first = value[torch.arange(len(value)), start.to(value.device)][:, None]
        apart.append((_relative(first) >= tau)[:, 0].double().mean(0).cpu())

    late = [layer.index for layer in tower.layers if layer.index >= first_layer]
    if not late:
        return ()
    with _each_residual(model, tower, late, x, keep):
        model.run(x)
    return tuple((torch.stack(apart).mean(0) >= 0.5).nonzero().flatten().tolist())


def _relative(x: Tensor) -> Float[Tensor, "example position d"]:
    """|x[d]| / RMS(x), in float32."""
    wide = x.detach().float()
    return wide.abs() / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()


def _phi(x: Tensor, dims: Sequence[int]) -> Float[Tensor, "example position"]:
    return _relative(x)[..., torch.tensor(list(dims), device=x.device)].amax(-1)


class _each_residual(ExitStack):
    """While inside, the residual that enters each of these layers is shown to `keep`."""

    def __init__(
        self, model: Model, tower: Any, layers: Sequence[int], x: Inputs, keep: Callable[[int, Tensor], None]
    ) -> None:
        super().__init__()
        for layer in (one for one in tower.layers if one.index in layers):

            def tap(value: Tensor, n: int = layer.index) -> Tensor:
                keep(n, value)
                return value

            port = layer.ports["resid_pre"]
            self.callback(stand_at(model.module, port, tap, batch=lambda: x.batch).remove)


register(
    Method(
        "interp.vision.sinks",
        number="share of a head's weight on the image that is on tokens which are no sinks (image-centric)",
        shown="map",
        label="visual sinks",
        signed=False,
        papers=("2503.03321",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 1.2,
        values="ratio",
        example=lambda t: sinks(t.model, t.base, tau=4.0, dims=(1, 32), first_layer=1),
    )
)
