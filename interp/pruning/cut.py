"""Heads removed from a model's weights: rows of q, k, v and columns of the output projection gone.

A kv group goes when all its query heads go; in a group that stays, heads that were to go write nothing, since their
columns of the output projection are zero. One group stays in every layer, silent if need be: no class knows a layer
without heads. The cut model is compared with the masked one on the example inputs each time, and a model for which the
two differ is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.spread import refuse_cut
from interp.hooks.anatomy.towers import Layer
from interp.hooks.edits.edits import Edit, Zero
from interp.hooks.errors import ModelError
from interp.hooks.survey.answers import answer
from interp.loading.cut_models import HEADS, KV_HEADS, WIDTHS, put
from interp.model import attach
from interp.pruning.choose import labels
from interp.pruning.fits import refit
from interp.pruning.owners import Split, output_axis, owners
from interp.pruning.remains import Rest

if TYPE_CHECKING:
    from interp.model import Model

TOLERANCE = 1e-5
"""How far the cut model may be from the masked one, at numbers of size 1, in float32."""


def masks(model: Model, gone: Collection[str]) -> tuple[Edit, ...]:
    """Edits under which these heads write nothing."""
    return tuple(Zero(f"{name}.z") for name in labels(model.anatomy) if name in gone)


def cut(model: Model, rests: Mapping[str, list[Rest]], edits: Sequence[Edit]) -> Model:
    """A deep copy of the model without those heads, by tower name; `edits` mask the same heads."""
    _refuse(model)
    wanted = answered(model, edits)
    own = copied(model)
    rests = {name: [one for one in found if one.first] for name, found in rests.items()}
    smaller = {name: [one.layer for one in found if len(one.heads) < one.layer.heads] for name, found in rests.items()}
    splits = {name: owners(own, own.anatomy.towers[name], layers) for name, layers in smaller.items() if layers}
    with torch.no_grad():
        for name, found in rests.items():
            for one in found:
                if len(one.heads) < one.layer.heads or one.silent:
                    _cut_layer(own.module, one, splits.get(name, {}).get(one.layer.index, ()))
    refit(own, rests)
    _check(own, wanted)
    own.discover(own.example())
    return own


def copied(model: Model) -> Model:
    """The same model with weights of its own."""
    refuse_cut(model.module, "the model is not copied to change its weights")
    return attach(copy.deepcopy(model.module), model.processor, family=model.family, example=model.example())


def silenced(model: Model, rests: Mapping[str, list[Rest]]) -> Model:
    """A copy in which heads that go write nothing and keep their numbers."""
    _refuse(model)
    own = copied(model)
    for found in rests.values():
        for one in found:
            layer = one.layer
            gone = tuple(h for h in range(layer.heads) if h not in one.heads or h in one.silent)
            with torch.no_grad():
                _silence(own.module, layer, output_axis(own.module, layer), tuple(range(layer.heads)), gone)
    return own


def _refuse(model: Model) -> None:
    away = next((name for name, p in model.module.named_parameters() if p.device.type == "meta"), None)
    if away is not None:
        raise ModelError(f"{away} is offloaded: load the model whole to cut heads out, or use how='mask'.")


def _cut_layer(root: nn.Module, one: Rest, splits: Sequence[Split]) -> None:
    axis, width = output_axis(root, one.layer), one.layer.d_value
    for split in splits:
        take(root, split.name, split.axis, split.kept(one.heads, one.groups))
    take(root, f"{one.layer.out}.weight", axis, [h * width + i for h in one.heads for i in range(width)])
    _silence(root, one.layer, axis, one.heads, one.silent)
    for module, name, value in list(counts(root, one)):
        setattr(root.get_submodule(module), name, value)


def _silence(root: nn.Module, layer: Layer, axis: int, heads: tuple[int, ...], silent: tuple[int, ...]) -> None:
    weight = root.get_parameter(f"{layer.out}.weight")
    for n, head in enumerate(heads):
        if head in silent:
            weight.narrow(axis, n * layer.d_value, layer.d_value).zero_()


def take(root: nn.Module, name: str, axis: int, kept: list[int]) -> None:
    """Keep some indices of a parameter, and let its module know its new size."""
    old = root.get_parameter(name)
    if len(kept) < old.shape[axis]:
        put(root, name, old.detach().index_select(axis, torch.tensor(kept, device=old.device)))


def counts(root: nn.Module, one: Rest) -> Iterator[tuple[str, str, int]]:
    """(module, attribute, new value) of every number of heads that the attention keeps."""
    layer = one.layer
    known = {
        **dict.fromkeys(HEADS, (layer.heads, len(one.heads))),
        **dict.fromkeys(KV_HEADS, (layer.kv_heads, len(one.groups))),
        **dict.fromkeys(WIDTHS, (layer.heads * layer.d_head, len(one.heads) * layer.d_head)),
    }
    for path, module in root.get_submodule(layer.attention).named_modules(prefix=layer.attention):
        for name, (old, new) in known.items():
            if type(module.__dict__.get(name)) is int and module.__dict__[name] == old:
                yield path, name, new


def answered(model: Model, edits: Sequence[Edit] = ()) -> Tensor:
    """What the model says to its example inputs."""
    model.ready()
    with model.edited(edits), torch.no_grad():
        return answer(model.module(**model.called_with(model.example())))


def _check(own: Model, wanted: Tensor) -> None:
    """The cut model answers as the masked one did."""
    name = type(own.module).__name__
    found = _run(own, name)
    size = max(1.0, float(wanted.abs().max()))
    bound = max(TOLERANCE, 64 * torch.finfo(wanted.dtype).eps) * size
    gap = float((found.double() - wanted.double()).abs().max()) if found.shape == wanted.shape else float("inf")
    if not gap <= bound:
        raise ModelError(
            f"{name} without these heads is {gap:.3g} from the same model with them masked (at most {bound:.3g} is"
            " rounding): its heads cannot be cut. Use how='mask'."
        )


def _run(own: Model, name: str) -> Tensor:
    """A class that has its number of heads somewhere else fails in torch, on shapes."""
    try:
        with torch.no_grad():
            return answer(own.module(**own.called_with(own.example())))
    except RuntimeError as error:
        raise ModelError(
            f"{name} does not run with fewer heads ({error}): it cannot be cut. Use how='mask'."
        ) from error
