"""An atlas of attention patterns: which heads look alike, at what distance they look, and how that changes over layers.

Each head's pattern on each example is brought to a small map and its strength by distance
(`interp/heads/patterns/shapes.py`), these are embedded by an autoencoder trained on the spot
(`interp/heads/patterns/embed.py`), and heads are clustered by their mean code. Inspired by Li et al. 2023 (How Does
Attention Work in Vision Transformers?, arXiv 2303.13731), who summarise patterns by an autoencoder and profile strength
over neighbours; the definitions here are ours. The result also has mean distance, entropy (also relative to that of
equal weights), and the effective rank of whole patterns of short inputs. Cost: one forward pass and about one more
attention, then seconds of training; no N x N pattern is kept of long inputs. Limits: a cluster is of the form of
patterns on these data, not of what heads do; two patterns that differ within one bin and one band are the same here;
the number of clusters is chosen, not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.kinds.reading import head_names, head_sites, page_of, read_heads
from interp.heads.patterns.embed import clusters as clustered
from interp.heads.patterns.embed import embed
from interp.heads.patterns.result import Atlas
from interp.heads.patterns.shapes import SHORT, Shape, bands
from interp.hooks.errors import InputsError
from interp.hooks.run.weights import Rows
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.heads.kinds.page import Page
    from interp.hooks.sites import Site
    from interp.model import Model


def atlas(
    model: Model,
    data: Any,
    *,
    heads: str = "L*",
    bins: int = 8,
    dims: int = 4,
    clusters: int = 6,
    steps: int = 300,
    seed: int = 0,
) -> Atlas:
    """The patterns of one tower's heads ("L*", "vision.L*") on some inputs; `bins` is the side of the small maps."""
    if min(bins, dims, clusters, steps) < 1:
        raise InputsError(f"bins, dims, clusters and steps are at least 1; got {bins}, {dims}, {clusters} and {steps}.")
    sites = head_sites(model, heads)
    names = head_names(model, sites)
    if len(names) < 2:
        raise InputsError(f"an atlas compares heads, and {heads!r} is {len(names)}: name more, such as 'L*'.")
    x = model.inputs(data)
    page = page_of(model, sites, x)
    if page.picture and not bool(page.patch.any()):
        raise InputsError("the places of this tower's patches are not known, so there is no distance between them.")
    shortest = int(page.valid.sum(1).min())
    short = page.length <= SHORT
    found = _measured(model, sites, x, page, min(bins, shortest), rank=short)
    features = torch.cat([found["map"].flatten(2), found["profile"]], 2)
    made = embed(features.flatten(0, 1), dims, steps=steps, seed=seed)
    codes = made.codes.unflatten(0, features.shape[:2])
    labels, centres = clustered(codes.mean(1), clusters)
    settled = (torch.cdist(codes, centres[None].expand(len(codes), -1, -1)).argmin(2) == labels[:, None]).double()
    left_out = {} if short else {"effective rank": f"whole patterns are held of at most {SHORT} tokens"}
    how = {
        "method": "atlas",
        "bins": min(bins, shortest),
        "dims": dims,
        "clusters": clusters,
        "steps": steps,
        "seed": seed,
    }
    return Atlas(
        names, codes, labels, settled.mean(1), found["map"].mean(1), found["profile"], tuple(bands(page)),
        {name: found[name] for name in MEASURES if name in found}, (made.explained, made.principal), left_out,
        {**about(model.module, x), **how},
    )  # fmt: skip


MEASURES = ("distance", "entropy", "relative entropy", "effective rank")


def _measured(model: Model, sites: list[Site], x: Any, page: Page, bins: int, *, rank: bool) -> dict[str, Tensor]:
    """Everything that is measured of patterns [head, example, ...], one layer after another."""
    shapes: dict[Site, Shape] = {}
    done: dict[Site, dict[str, Tensor]] = {}

    def read(rows: Rows) -> None:
        shape = shapes.setdefault(rows.site, Shape(page, bins, rank=rank))
        shape.take(rows.at, rows.weights)
        if int(rows.at[-1]) == page.length - 1:
            done[rows.site] = shapes.pop(rows.site).result()

    read_heads(model, sites, x, read, page=page)
    return {name: torch.cat([done[site][name] for site in sites]) for name in done[sites[0]]}


register(
    Method(
        "interp.heads.atlas",
        number="place of a head among all heads by the form of its pattern; distances without a unit",
        shown="map",
        passes=lambda t: 3,
        example=lambda t: atlas(t.model, t.base, heads=f"{t.tower}L*", clusters=2, steps=4),
    )
)
