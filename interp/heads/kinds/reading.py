"""What the methods on attention heads share: the heads of one tower by name, their page, and their weights read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.kinds.kind import Meter
from interp.heads.kinds.page import Page
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import heads_at
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.weights import Read, Rows, read_weights
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Tower
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model


def head_sites(model: Model, heads: str, *, cross: bool = False) -> list[Site]:
    """The attentions that a pattern of heads means, such as "L*", "vision.L*" or "L3-5.H0": self-attention of one
    tower, or cross-attention."""
    anatomy = model.ready()
    spelled = heads if ".z" in heads else f"{heads}.z"
    found = [Site(s.tower, s.layer, "attention", s.heads) for s in anatomy.sites(spelled)]
    wanted = "cross" if cross else "self"
    if others := [s.layer for s in found if anatomy.layer(s).kind != wanted]:
        raise SiteError(
            f"heads that look at another sequence are asked about, and layers {others} of {heads!r} are self-attention:"
            " name others."
            if cross
            else f"a head's own sequence is asked about, and layers {others} of {heads!r} are cross-attention: name"
            " others, or see interp.heads.alignment."
        )
    return found


def heads_of(model: Model, site: Site) -> tuple[int, ...]:
    """The heads of one of these sites."""
    return site.heads or tuple(range(model.anatomy.layer(site).heads))


def head_names(model: Model, sites: Sequence[Site]) -> tuple[str, ...]:
    """Each head by name: "L0.H1", "vision.L0.H1"."""
    return tuple(name for s in sites for name in heads_at(s, heads_of(model, s)))


def tower_of(model: Model, sites: Sequence[Site]) -> Tower:
    """The tower of the sites."""
    return model.anatomy.tower(sites[0].tower, text=str(sites[0]))


def page_of(model: Model, sites: Sequence[Site], x: Inputs) -> Page:
    """The positions the heads attend over, labelled; refused where there is nowhere to look."""
    tower, mine = tower_of(model, sites), tower_inputs(x, sites[0])
    if short := [n for n, count in enumerate(mine.valid.sum(1).tolist()) if count < 2]:
        raise InputsError(
            f"a head needs at least two tokens to look somewhere; examples {short} have fewer: give longer inputs."
        )
    picture = tower.name == "vision" or mine.main == "vision"
    return Page.of(mine, causal=not tower.bidirectional, picture=picture)


def read_heads(model: Model, sites: Sequence[Site], x: Inputs, read: Read, *, page: Page) -> None:
    """One forward pass, in which `read` gets the weights of every site, some rows at a time."""

    def forward() -> None:
        with torch.no_grad():
            model.module(**model.called_with(x.kwargs))

    def real(rows: Rows) -> None:
        there = page.valid[:, rows.at.cpu()].to(rows.weights.device)[:, None, :, None]
        finite(rows.weights.masked_fill(~there, 0.0), f"{rows.site}: weights")
        read(rows)

    with forced_eager():
        read_weights(
            model.module, model.anatomy, sites, forward, real, shape=tuple(page.valid.shape), family=model.family
        )


def measured(
    model: Model, sites: Sequence[Site], x: Inputs, page: Page, kinds: Sequence[Any]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The values [head, example] over all sites of kinds of such a page, and the words on them where there are some,
    from one forward pass."""
    if not kinds:
        return {}, {}
    meters: dict[Site, list[Meter]] = {site: [kind.meter(page) for kind in kinds] for site in sites}

    def read(rows: Rows) -> None:
        for meter in meters[rows.site]:
            meter.take(rows.at, rows.weights)

    read_heads(model, sites, x, read, page=page)
    results = {kind.name: [meters[site][n].result() for site in sites] for n, kind in enumerate(kinds)}
    values = {name: torch.cat([value for value, _ in parts]) for name, parts in results.items()}
    said = {name: tuple(word for _, words in parts for word in words) for name, parts in results.items()}
    return values, {name: words for name, words in said.items() if words}
