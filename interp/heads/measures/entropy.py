"""How focused a head is: mean entropy of its attention rows, in nats, and mean largest weight.

`entropy` is `mean over real rows i of -sum_j p_ij ln p_ij`; small is focused, and focused is ranked first. `confidence`
is `mean over rows of max_j p_ij` (Voita et al. 2019, arXiv 1905.09418, who leave the end-of-sentence token out; here
every real row counts). Both from the kernels' statistics, without N x N. Cost: one forward pass and about one more
attention a layer. Limits: where a head looks is not what it does, and a head that rests on one token is focused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.measures.asked import Asked, Run
from interp.heads.measures.measured import Measured, Order
from interp.hooks.head_names import layer_name, numbers_of
from interp.hooks.sites import Site
from interp.records import Variant, register

STATS = {"entropy": "entropy", "confidence": "max"}
ORDER: dict[str, Order] = {"entropy": "low", "confidence": "high"}


def measured(run: Run, names: list[str]) -> list[Measured]:
    """Those of the two that are asked for, tower by tower."""
    asked = run.asked
    found: dict[str, dict[Site, Tensor]] = {name: {} for name in names}
    for tower in dict.fromkeys(site.tower for site in asked.whole):
        mine = [site for site in asked.whole if site.tower == tower]
        prefix = "" if tower is None else f"{tower}."
        heads = f"{prefix}L{numbers_of(site.layer for site in mine if site.layer is not None)}"
        stats = asked.model.attention(asked.x, stats=[STATS[name] for name in names], heads=heads)
        for site in mine:
            for name in names:
                found[name][site] = _mean(asked, site, stats.at(layer_name(site), STATS[name]))
    return [Measured(name, asked.by_head(found[name]), order=ORDER[name], passes=2.0) for name in names]


def _mean(asked: Asked, site: Site, rows: Tensor) -> Tensor:
    """[example, head] from [example, head, row]."""
    value = rows.double().transpose(1, 2)
    real = asked.real(site, value)
    return torch.where(real[..., None], value, 0.0).sum(1) / real.sum(1)[:, None]


_NUMBERS = {
    "entropy": "mean entropy of the head's rows, in nats; the lowest come first",
    "confidence": "mean of each row's largest weight, 0 to 1",
}
for _order, _name in enumerate(STATS):
    register(
        Variant(
            "interp.importance", _name, argument="by", number=_NUMBERS[_name], run=measured, order=40 + _order,
            passes=lambda t: 2, how={"shares": "entropy"}, signed=False,
        )
    )  # fmt: skip
