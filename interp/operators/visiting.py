"""What every attention call of some layers received, shown as a head program sees it, while the model runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from interp.hooks.drive.intercept import Intercept, OwnTap
from interp.hooks.errors import EditError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.call import Call, received
from interp.hooks.stand.part import Part

if TYPE_CHECKING:
    from interp.model import Model

See = Callable[[Site, Part], None]


def places_of(model: Model, sites: str) -> list[Site]:
    """The layers of a pattern of heads, each with its heads; refused where a call is not seen."""
    anatomy = model.ready()
    found = [site for site in anatomy.sites(sites) if site.component == "attention"]
    if not found:
        raise EditError(f"{sites!r} names no heads: a pattern without a component, such as 'L5.H3' or 'L*.H*'.")
    for site in found:
        if not anatomy.layer(site).seen:
            raise ModelError(f"{site}: its attention call is not seen, so its attention cannot be replaced.")
    return found


def visit(model: Model, x: Inputs, sites: Sequence[Site], see: See) -> None:
    """Run the model once and show the heads of these layers as their calls come."""
    with Intercept(model.module) as put:
        for site in sites:
            layer = model.anatomy.layer(site)
            put.tap(layer, _Seeing(site, layer.heads_of(site), see))
        model.run(x)


class _Seeing(OwnTap):
    """Shows one layer's calls."""

    def __init__(self, site: Site, heads: tuple[int, ...], see: See) -> None:
        self.site, self.heads, self.see = site, heads, see

    def record(self, call: Call) -> None:
        if call.q.ndim != 4:
            raise ModelError(f"{self.site}: its attention call has no axes [example, head, position, d].")
        call.refuse_programs(self.heads)
        self.see(self.site, received(call, self.heads))


def one_call_each(model: Model, x: Inputs, sites: Sequence[Site]) -> dict[str, Part]:
    """The part of each layer, by the layer's name; refused where a run calls a layer several times, or folds its
    examples, as windows do."""
    found: dict[str, Part] = {}

    def see(site: Site, part: Part) -> None:
        rows = tower_inputs(x, site).valid.shape[0]
        if str(site) in found or part.q.shape[0] != rows:
            raise ModelError(
                f"{site}: it attends {part.q.shape[0]} rows for {rows} examples, or more than once a run (windows,"
                " pictures one by one), so there is not one number for each example and head."
            )
        if not all(bool(torch.isfinite(one).all()) for one in (part.q, part.k, part.v)):
            raise ModelError(f"{site}: its q, k or v are not finite, so nothing can be measured there.")
        found[str(site)] = part

    visit(model, x, sites, see)
    return found


def real_rows(x: Inputs, site: Site) -> Any:
    """Bool [example, position], no padding."""
    return tower_inputs(x, site).valid
