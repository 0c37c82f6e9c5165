"""What heads do with their sinks: the metric with every sink hidden from the heads that rest on it, and with as many
random tokens hidden instead.

A head's sinks are the tokens it gives more than epsilon to (`Sinks.mask`), in each example its own. Hidden, they have
no weight in any row after the first, which sees nothing else; the other keys take it up in proportion. The control
hides in the same heads and examples the same number of random tokens that are no sinks, seen by as many rows as a sink
must be. effect = metric(hidden) - metric(base); `share` is the share of draws whose mean effect is at least as large in
size as that of the sinks. Cost: two forward passes and one a draw.
Limits: a later token that all rows look at may well be what they look for, in an image above all: see whether hiding it
hurts before calling it a sink. Sinks take most of the weight (`weight` says how much), so hiding them moves more than
hiding a token of no weight: a larger effect says that the weight is not idle, not that the token carries content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.hooks.edits.edits import MaskKeys
from interp.hooks.errors import InputsError
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site, parse
from interp.metrics.edited import EditedScores
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import Method, register
from interp.results.saved import Saved
from interp.results.sinks import EPSILON, Sinks
from interp.sink.beside_random import BesideRandom

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class SinkKnockout(BesideRandom, Saved):
    """Effects of hiding sinks [example] and of hiding random tokens [draw, example]."""

    STEM = "sink_knockout"

    heads: tuple[str, ...]
    """The heads that have sinks in some example."""
    tokens: float
    """Tokens hidden per such head and example, on average."""
    base: Tensor
    sinks: Tensor
    random: Tensor
    weight: tuple[float, float]
    """How much of what a head gives is hidden, per hidden token (alpha_k): of sinks, of random tokens."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """Three rows: sinks, random tokens, and the difference; estimate, low, high (over examples), n, weight."""
        return super().to_frame().assign(weight=[*self.weight, self.weight[0] - self.weight[1]])

    def __repr__(self) -> str:
        return (
            f"SinkKnockout of {self.tokens:.2g} tokens in each of {len(self.heads)} heads: sinks"
            f" {float(self.sinks.mean()):+.4g}, random tokens {float(self.random.mean()):+.4g} (base"
            f" {float(self.base.mean()):.4g}); {self.share:.0%} of {len(self.random)} draws do as much"
        )


def sink_knockout(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    sinks: Sinks,
    which: Literal["all", "first", "later"] = "all",
    epsilon: float = EPSILON,
    draws: int = 20,
    seed: int = 0,
) -> SinkKnockout:
    """Hide the sinks that `interp.sinks(m, inputs)` found on the same inputs, then as many random tokens; `which` says
    whether the first token is hidden where it is one, or only later ones, or both."""
    if draws < 1:
        raise InputsError(f"draws= is how many sets of random tokens are compared with, at least 1; got {draws}.")
    x = model.inputs(inputs)
    name = parse(sinks.sites[0]).tower
    tower = model.ready().tower(name, text=sinks.sites[0])
    valid = tower_inputs(x, Site(name, tower.layers[0].index, "z")).valid.cpu()
    _same(sinks, valid)
    resting = sinks.mask(epsilon)
    found = _chosen(sinks, resting, which)
    if not bool(found.any()):
        raise InputsError(
            f"no head gives any token ({which}) more than epsilon={epsilon} here; the first gets at most"
            f" {float(sinks.first.max()):.3g}, others {float(sinks.later(0.0)['received'].max()):.3g}."
        )
    rows = valid if tower.bidirectional else valid & (valid.cumsum(1) > 1)
    free = _free(sinks, valid, causal=not tower.bidirectional) & ~resting
    scores, random = EditedScores(model, x, metric), torch.Generator().manual_seed(seed)
    drawn = [_drawn(found, free, random) for _ in range(draws)]
    effects = [scores(_edits(sinks.sites, keys, rows)) - scores.base for keys in (found, *drawn)]
    meta = {**about(model.module, x), "method": "sink knock-out", "epsilon": epsilon, "which": which,
            "seed": seed, "metric": metric_name(metric)}  # fmt: skip
    has = found.any(-1)
    return SinkKnockout(
        heads=tuple(site for site, some in zip(sinks.sites, has.any(1).tolist(), strict=True) if some),
        tokens=float(found.sum() / has.any(1).sum() / len(valid)),
        base=scores.base,
        sinks=effects[0],
        random=torch.stack(effects[1:]),
        weight=(_weight(sinks, [found]), _weight(sinks, drawn)),
        meta=meta,
    )


def _chosen(sinks: Sinks, resting: Tensor, which: str) -> Tensor:
    if which not in ("all", "first", "later"):
        raise InputsError(f"which= is 'all', 'first' or 'later', got {which!r}.")
    first = (sinks.start[:, None] == torch.arange(resting.shape[2]))[None]
    return resting & {"all": torch.ones_like(first), "first": first, "later": ~first}[which]


def _same(sinks: Sinks, valid: Tensor) -> None:
    if sinks.kind.shape != valid.shape or not torch.equal(sinks.kind >= 0, valid):
        raise InputsError(
            f"the sinks were found on inputs of {list(sinks.kind.shape)} [example, position], these are"
            f" {list(valid.shape)} or padded otherwise: give what interp.sinks was given."
        )


def _free(sinks: Sinks, valid: Tensor, *, causal: bool) -> Tensor:
    """Bool [1, example, key]: real tokens that enough rows see."""
    after = valid.flip(1).cumsum(1).flip(1) if causal else valid.sum(1, keepdim=True)
    return (valid & (after >= int(sinks.meta["least"])))[None]


def _drawn(found: Tensor, free: Tensor, random: torch.Generator) -> Tensor:
    """As many free tokens for every head and example."""
    count = found.sum(-1, keepdim=True)
    if bool((free.sum(-1, keepdim=True) < count).any()):
        raise InputsError("there are fewer other tokens than sinks to hide in their place: give longer inputs.")
    order = torch.rand(found.shape, generator=random).masked_fill(~free, 2.0).argsort(-1).argsort(-1)
    return order < count


def _edits(sites: tuple[str, ...], keys: Tensor, rows: Tensor) -> list[MaskKeys]:
    return [
        MaskKeys(site, keys=mine, positions=rows) for site, mine in zip(sites, keys, strict=True) if bool(mine.any())
    ]


def _weight(sinks: Sinks, sets: list[Tensor]) -> float:
    """alpha_k averaged over the hidden tokens."""
    first = sinks.start[None, :, None] == torch.arange(sinks.received.shape[2])
    alpha = torch.where(first, sinks.first[..., None], sinks.received)
    return float(torch.stack([alpha[some].mean() for some in sets]).mean())


register(
    Method(
        "interp.sink.sink_knockout",
        number="effect on the metric of all sinks hidden, with the effect of as many random tokens",
        shown="bars",
        needs=("metric", "result"),
        passes=lambda t: 2 + 2,
        values="sinks",
        example=lambda t: sink_knockout(
            t.model,
            t.base,
            metric=t.metric,
            sinks=t.of("interp.sinks"),
            draws=2,
            epsilon={"decoder": 0.3, "encoder-decoder": 0.6}.get(t.kind, 0.1),
        ),
    )
)
