"""Which rows of which parameters belong to which head, found by asking the model.

Row i of a parameter belongs to query head h where q of head h, as the attention call gets it, has a gradient there and
q, k and v of no other head have: so it is read off one run, whatever the layout (one matrix, fused thirds, interleaved
per head, a latent with an expansion per head) and anything between them (biases, norms per head, rotary positions).
Parameters that every head reads, such as a norm of one head's width, stay whole. Columns of the output projection are
z's, head after head. Cost: one forward pass, and per layer a backward pass into one attention for every head and twice
every kv head. Limits: a parameter that mixes heads (a norm over all of them) cannot be split, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.quantised import quantised
from interp.hooks.anatomy.spread import cut_weight
from interp.hooks.anatomy.towers import Layer, Tower
from interp.hooks.errors import ModelError, SiteError
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model

SINKS = "sinks"
"""The parameter of an attention with one learned sink a query head."""
Unit = tuple[str, int]
"""("q", head), or ("k", kv head) and ("v", kv head)."""


@dataclass(frozen=True)
class Split:
    """One parameter, one of its axes, and whose each index along it is."""

    name: str
    axis: int
    owner: tuple[Unit, ...]

    def kept(self, heads: Collection[int], groups: Collection[int]) -> list[int]:
        """The indices that stay."""
        wanted = {"q": heads, "k": groups, "v": groups}
        return [n for n, (part, number) in enumerate(self.owner) if number in wanted[part]]


def owners(model: Model, tower: Tower, layers: list[Layer]) -> dict[int, list[Split]]:
    """For each layer, the parameters that can be cut; the model's parameters take gradients while this runs."""
    name = spelled(model.anatomy, tower)
    named = {layer.index: dict(_parameters(model.module, layer)) for layer in layers}
    held = [p for found in named.values() for p in found.values()]
    before = [p.requires_grad for p in held]
    try:
        for p in held:
            p.requires_grad_()
        seen = _recorded(model, [Site(name, layer.index, part) for layer in layers for part in "qkv"])
        return {layer.index: _splits(layer, named[layer.index], _parts(seen, name, layer), tower) for layer in layers}
    finally:
        for p, wanted in zip(held, before, strict=True):
            p.requires_grad_(wanted)


def _parameters(root: nn.Module, layer: Layer) -> Iterator[tuple[str, nn.Parameter]]:
    """What the attention holds; where the module that makes the call holds nothing, what its parent holds."""
    owner = layer.attention
    if next(root.get_submodule(owner).parameters(), None) is None:
        owner = owner.rpartition(".")[0]
    for path, module in root.get_submodule(owner).named_modules(prefix=owner):
        if (kind := quantised(module)) is not None or hasattr(module, "base_layer"):
            raise ModelError(f"{path} is {kind or 'an adapter'}: rows of it cannot be cut. Use how='mask'.")
        for name, p in module.named_parameters(recurse=False):
            if cut_weight(p):
                raise ModelError(
                    f"{path}.{name} is divided over several processes, so its rows cannot be removed. Use how='mask'."
                )
            if p.is_floating_point() and p.device.type != "meta":
                yield f"{path}.{name}", p


def _recorded(model: Model, sites: list[Site]) -> Mapping[Site, Tensor]:
    for site in sites:
        try:
            model.anatomy.sites(site)
        except SiteError as why:
            module = model.anatomy.layer(site).attention
            raise ModelError(f"{module} cannot be cut: {why} Use how='mask'.") from why
    session = Session(model.module, model.anatomy, wish=Wish(sites, grad=True), family=model.family)
    with model.on(session), torch.enable_grad():
        model.module(**model.called_with(model.example()))
    return session.recorded()


def _parts(seen: Mapping[Site, Tensor], tower: str | None, layer: Layer) -> dict[Unit, Tensor]:
    """What each unit is in this run [batch, position, d]."""
    parts: dict[Unit, Tensor] = {}
    for part in "qkv":
        value = seen[Site(tower, layer.index, part)]
        parts |= {(part, n): value[:, :, n] for n in range(value.shape[2])}
    return parts


def _splits(layer: Layer, named: Mapping[str, nn.Parameter], parts: Mapping[Unit, Tensor], tower: Tower) -> list[Split]:
    names, held = list(named), list(named.values())
    touched: dict[str, dict[Unit, Tensor]] = {name: {} for name in names}
    random = torch.Generator().manual_seed(0)
    for unit, value in parts.items():
        direction = torch.randn(value.shape, generator=random).to(value)
        slopes = torch.autograd.grad(value, held, direction, retain_graph=True, allow_unused=True)
        for name, slope in zip(names, slopes, strict=True):
            if slope is not None and bool((slope != 0).any()):
                touched[name][unit] = slope != 0
    found = [split for name in names if (split := _split(name, touched[name])) is not None]
    _whole(layer, tower, found, parts, named)
    sinks = named.get(f"{layer.attention}.{SINKS}")
    if sinks is not None and sinks.shape == (layer.heads,):
        found.append(Split(f"{layer.attention}.{SINKS}", 0, tuple(("q", h) for h in range(layer.heads))))
    return found


def _split(name: str, touched: Mapping[Unit, Tensor]) -> Split | None:
    """The parameter by the axis along which its units are separate and leave nothing out; None where there is none."""
    for axis in range(next(iter(touched.values())).ndim if touched else 0):
        along = {unit: mask.movedim(axis, 0).flatten(1).any(1) if mask.ndim > 1 else mask
                 for unit, mask in touched.items()}  # fmt: skip
        whose = torch.stack(list(along.values()))
        if bool((whose.sum(0) == 1).all()):
            units = list(along)
            return Split(name, axis, tuple(units[n] for n in whose.int().argmax(0).tolist()))
    return None


def _whole(
    layer: Layer, tower: Tower, found: list[Split], parts: Mapping[Unit, Tensor], named: Mapping[str, nn.Parameter]
) -> None:
    """Every unit has rows of a matrix of its own, or the heads of this layer cannot be separated in its weights."""
    have = {unit for split in found if named[split.name].ndim > 1 for unit in split.owner}
    lost = [f"{part} of head {n}" for part, n in parts if (part, n) not in have]
    if lost:
        raise ModelError(
            f"{tower.name} layer {layer.index}: {lost[0]} has no rows of its own in {layer.attention}: something in it"
            " mixes heads (a norm over all of them, a gate among the rows), so heads cannot be removed. Use"
            " how='mask'."
        )


def output_axis(root: nn.Module, layer: Layer) -> int:
    """The axis of the output projection's weight of z, head after head."""
    out: Any = None if layer.out is None else root.get_submodule(layer.out)
    kind = type(out).__name__
    if (type(out) is nn.Linear or kind == "Conv1D") and type(out._parameters["weight"]) is nn.Parameter:
        return 0 if kind == "Conv1D" else 1
    raise ModelError(
        f"{layer.out or layer.attention} is a {kind}: expected a plain matrix as the output projection, whose inputs"
        " are the heads. Use how='mask'."
    )
