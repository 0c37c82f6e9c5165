"""The tokens of pictures at one place of a model, and splits of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site, parse

if TYPE_CHECKING:
    from interp.model import Model


def picture_tokens(
    model: Model, inputs: Any, site: str, *, with_class: bool = False
) -> tuple[Inputs, Inputs, Float[Tensor, "example token d"], Float[Tensor, "example token 2"]]:
    """The inputs, those of the site's tower, its image tokens (and its class token), and the row and column of each, -1
    for what has none."""
    x = model.inputs(inputs)
    names = [str(one) for one in model.sites(site)]
    if len(names) != 1:
        raise InputsError(f"site= is one place, such as 'vision.L2.resid_post' or 'L1.H3.z'; {site!r} is {len(names)}.")
    where = parse(site)
    own = tower_inputs(x, Site(where.tower, 0, "resid_pre"))
    cells = (own.roles.where("image") & own.valid & own.roles.patch).cpu()
    if not bool(cells.any(1).all()):
        raise InputsError(f"{site}: some example has no token of a patch, so it has no value to read.")
    kept = cells | (own.roles.where("cls").cpu() & own.valid.cpu()) if with_class else cells
    if with_class and torch.equal(kept, cells):
        raise InputsError(f"{site}: this tower has no class token; leave with_class= out.")
    if len(set(kept.sum(1).tolist())) > 1:
        raise InputsError("examples have different numbers of patches; probe pictures of one size.")
    value = model.run(x, record=names)[names[0]]
    flat = value.flatten(2).float().cpu()
    if flat.shape[:2] != kept.shape:
        raise InputsError(f"{site} holds {list(value.shape)}, and its tower has {list(kept.shape)} positions.")
    places = torch.stack([own.roles.row.cpu()[kept], own.roles.col.cpu()[kept]], -1)
    count = int(kept[0].sum())
    return x, own, flat[kept].reshape(len(kept), count, -1), places.reshape(len(kept), count, 2).float()


def halves(examples: int, held_out: float, seed: int) -> tuple[Bool[Tensor, " example"], Bool[Tensor, " example"]]:
    """Examples to fit on and to judge on, drawn at random."""
    if not 0 < held_out < 1:
        raise InputsError(f"held_out= is a share of the examples, between 0 and 1; got {held_out}.")
    count = round(held_out * examples)
    if not 0 < count < examples:
        raise InputsError(f"{examples} examples cannot be split with held_out={held_out}: give more.")
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    judged = torch.zeros(examples, dtype=torch.bool)
    judged[order[:count]] = True
    return ~judged, judged


def boxes_of_tokens(read: Any, tokens: int, with_class: bool) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Where tokens are in one picture a row, and its size; NaN and none where that is not known."""
    labels = read.roles
    none = torch.full((read.batch, tokens, 4), float("nan"))
    pictures = [{view.picture for view in row} for row in labels.views]
    if labels.sizes is None or any(len(mine) != 1 for mine in pictures):
        return none, ()
    kept = (labels.where("image") & read.valid & labels.patch).cpu()
    kept = kept | (labels.where("cls") & read.valid).cpu() if with_class else kept
    sizes = [labels.sizes[mine.pop()] for mine in pictures]
    return labels.boxes()[kept].reshape(none.shape), tuple((int(h), int(w)) for h, w in sizes)
