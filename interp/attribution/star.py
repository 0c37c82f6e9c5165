"""AtP*: attribution patching with the two repairs of Kramar et al. 2024, arXiv 2403.00745.

Query and key cells take the softmax as it is: the pattern is recomputed exactly and the gradient taken behind it
(`hooks/slopes/query_key.py`). GradDrop: where a head's direct and indirect effects cancel, the gradient is taken once
more for every layer with that layer's writes held, and `1/(L-1) sum_l |est_l|` is the score, the absolute value inside
the mean over prompts; in a model of one layer nothing can be left out, and the score is |est|. So these are magnitudes,
for finding candidates; `atp-qk` has the first repair only and keeps signs. Cost: two forward passes, L backward ones,
one attention call per layer with query sites, and rows * keys numbers a few rows at a time for key sites. Limits: cells
of several positions sum their positions' estimates before the absolute value; sites whose attention call is not seen
have no repaired q and k.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.attribution.pair import Pair, Setting, contributions
from interp.hooks.errors import ModelError
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import Dropped, Graph
from interp.hooks.slopes.query_key import key_effect, query_effect
from interp.hooks.stand.call import Call
from interp.records import Variant, register


def estimate(pair: Pair, setting: Setting) -> Tensor:
    """[cell, row], magnitudes."""
    dropped = Dropped()
    found = _run(pair, dropped)
    layers = list(dropped.layers)
    if len(layers) < 2:
        pair.notes |= {"signs": "magnitudes", "layers dropped": 0}
        return pair.cells(_repaired(pair, found, found.gradients())).abs()
    total: Tensor | float = 0.0
    for n, layer in enumerate(layers):
        dropped.layer = layer
        total = total + pair.cells(_repaired(pair, found, found.gradients(again=n < len(layers) - 1))).abs()
        pair.passes += n > 0
    pair.notes |= {"signs": "magnitudes", "layers dropped": len(layers)}
    return torch.as_tensor(total) / (len(layers) - 1)


def signed(pair: Pair, setting: Setting) -> Tensor:
    """[cell, row], with the query and key repair alone."""
    found = _run(pair, None)
    return pair.cells(_repaired(pair, found, found.gradients()))


def _run(pair: Pair, dropped: Dropped | None) -> Graph:
    softmaxed = [site for site in pair.whole if site.component in ("q", "k")]
    for site in softmaxed:
        if not pair.model.anatomy.layer(site).seen:
            raise ModelError(
                f"{site}: its attention call is not seen, so its softmax cannot be recomputed: use method='atp' for it."
            )
    outputs = [Site(site.tower, site.layer, "z") for site in softmaxed]
    wanted = list(dict.fromkeys([*pair.whole, *outputs]))
    return pair.run(sites=wanted, dropped=dropped, calls=softmaxed)


def _repaired(pair: Pair, found: Graph, slopes: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    asked = {site: value for site, value in found.values.items() if site in set(pair.whole)}
    made = contributions(pair.change(asked), slopes)
    for site, call in found.calls.items():
        dz = slopes[Site(site.tower, site.layer, "z")]
        made[site] = _softmaxed(site, call, pair.given(site), dz)
    return made


def _softmaxed(site: Site, call: Call, new: Tensor, dz: Tensor) -> Tensor:
    return query_effect(call, new, dz) if site.component == "q" else key_effect(call, new, dz)


register(
    Variant(
        "interp.attribute",
        "atp-qk",
        number="estimate of patching from one backward pass, the softmax taken as it is at q and k",
        run=signed,
        order=1,
        passes=lambda t: 3,
    )
)
register(
    Variant(
        "interp.attribute",
        "atp*",
        number="estimate of patching from a backward pass a layer, direct and indirect effects kept apart; a magnitude",
        run=estimate,
        order=2,
        passes=lambda t: 2 + t.layers,
        signed=False,
    )
)
