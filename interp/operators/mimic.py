"""Linear attention that is fitted to attend as a head does: Hedgehog's learned feature maps, by attention mimicry.

Zhang et al. 2024 (arXiv 2402.04347): maps phi(x) = [softmax(W x), softmax(-W x)], one for queries and one for keys of
each head, are trained so that the rows of phi(q).phi(k) are those of the softmax, by the cross-entropy of one from the
other, with the model's weights frozen. Each head is fitted separately from the q and k of the model as it is. Maps
begin at the identity where they have as many features as the head has dimensions, with a little noise by the seed.
What counts is the divergence on data that the fit has not seen.
Cost: one forward pass over the data and one over the held-out part; `steps` products of the patterns of the heads
named. Limits: what a map of 2 n features can do; trained on whole patterns, so texts of some hundreds of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, heads_at, spelled_together
from interp.hooks.stand.part import Part
from interp.operators.common.operator import rows_asked, visible, wide
from interp.operators.linear.linear import Linear
from interp.operators.visiting import one_call_each, places_of, real_rows
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Mimicry(HeadResult):
    """Feature maps fitted to heads, and how far they are from them."""

    STEM, TITLE = "mimicry", "divergence from the head's own softmax"

    sites: tuple[str, ...]
    values: Tensor
    """[head, example] held out: KL(softmax || fitted), the mean over rows, in nats."""
    before: Tensor
    """The same of the maps that the fit began with."""
    maps: Tensor
    """[head, 2, feature, d]: W of queries and of keys."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def operators(self) -> tuple[Linear, ...]:
        """The fitted heads, a layer at a time, for `m.run(x, edits=f.operators())` or `m.edited(...)`."""
        found = []
        for layer, heads in by_layer(self.sites).items():
            mine = [n for n, site in enumerate(self.sites) if site.rpartition(".")[0] == layer]
            maps = self.maps[mine].transpose(0, 1).contiguous()
            found.append(Linear(spelled_together(layer, heads), "hedgehog", maps=maps))
        return tuple(found)

    def tables(self) -> tuple[HeadTable, ...]:
        """The held-out divergence of each head, and what it was before the fit."""
        return (HeadTable(self.sites, self.values, "mimic", more={"before": self.before.mean(1)}),)

    def __repr__(self) -> str:
        before, after = float(self.before.mean()), float(self.values.mean())
        return f"Mimicry: {len(self.sites)} heads; held out, {before:.4g} nats before the fit and {after:.4g} after"


@torch.enable_grad()
def mimic(
    model: Model,
    data: Any,
    *,
    heldout: Any,
    sites: str = "L*.H*",
    features: int | None = None,
    steps: int = 200,
    rate: float = 0.02,
    seed: int = 0,
) -> Mimicry:
    """Fit feature maps to every head of `sites` on `data`, and judge them on `heldout`; `features` is n of the 2 n, the
    head's width unless said, `rate` is Adam's."""
    if steps < 0 or (features is not None and features < 1):
        raise InputsError(f"steps is at least 0 and features at least 1, got {steps} and {features}.")
    x, y = model.inputs(data), model.inputs(heldout)
    places = places_of(model, sites)
    fitted, judged = one_call_each(model, x, places), one_call_each(model, y, places)
    maps, values, before = [], [], []
    for site in places:
        part, other = fitted[str(site)], judged[str(site)]
        first = _begun(part, features or part.q.shape[-1], seed)
        last = _fit(part, real_rows(x, site), first, steps, rate)
        with torch.no_grad():
            real = real_rows(y, site)
            values.append(_divergence(other, last, real).T.double().cpu())
            before.append(_divergence(other, first, real).T.double().cpu())
        maps.append(last.transpose(0, 1).float().cpu())
    return Mimicry(
        tuple(name for site in places for name in heads_at(site, model.anatomy.layer(site).heads_of(site))),
        torch.cat(values), torch.cat(before), torch.cat(maps),
        meta={**about(model.module, x), "method": "mimic", "heldout_hash": y.digest(), "steps": steps, "rate": rate,
              "seed": seed},
    )  # fmt: skip


def _begun(part: Part, features: int, seed: int) -> Tensor:
    """[2, head, feature, d]"""
    random = torch.Generator().manual_seed(seed)
    d = part.q.shape[-1]
    noise = torch.randn(2, len(part.heads), features, d, generator=random) * 0.1 * d**-0.5
    return (noise + torch.eye(features, d)).to(wide(part.q))


def _fit(part: Part, real: Tensor, first: Tensor, steps: int, rate: float) -> Tensor:
    maps = first.clone().requires_grad_()
    optimizer = torch.optim.Adam([maps], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            loss = _divergence(part, maps, real).mean()
            (maps.grad,) = torch.autograd.grad(loss, [maps])
            optimizer.step()
    return maps.detach()


def _divergence(part: Part, maps: Tensor, real: Tensor) -> Tensor:
    """[example, head]: KL(softmax || fitted), the mean over rows that are no padding."""
    rows = rows_asked(part)
    with torch.no_grad():
        p = wide(part.softmax(part.scores()))
    a = Linear("", "hedgehog", maps=maps).pattern(part)
    tiny = torch.finfo(a.dtype).tiny
    each = torch.where(p > 0, p * (p.clamp(min=tiny).log() - a.clamp(min=tiny).log()), 0.0).sum(-1)
    counted = (real.to(a.device)[:, None] & visible(part, rows).any(-1)).expand(each.shape)
    return (each * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def _example(t: Trial) -> Mimicry:
    return mimic(t.model, t.base, heldout=t.source, sites=t.heads, steps=3)


register(
    Method(
        "interp.operators.mimic",
        number="held-out divergence of a fitted linear attention from the head's softmax, in nats; 0 is the same",
        shown="map",
        signed=False,
        needs=("source",),
        unfit={"encoder-decoder": "it adds a bias to its scores, and linear attention has no scores"},
        passes=lambda t: 4,
        example=_example,
    )
)
