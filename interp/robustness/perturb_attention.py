"""How far can an answer be moved by changing attention a little: the worst change within a radius, compared with random
ones.

After adversarial training for attention (arXiv 2009.12064), which adds to the scores a before the softmax

    r = -radius g / ||g||,     g = dM / da at a,     M the metric (there: minus the loss)

and its unlabelled form (arXiv 2104.08763; the iteration is that of arXiv 1704.03976), where M is minus the divergence
from the unperturbed answer. That has no slope at r = 0, so g is taken a little way along a random direction, which is
power iteration for the largest eigenvector of its curvature. `along="differences"` stays in the span of differences to
the other examples' attention, d_k = a_k - a of norm 1 ("interpretable": iAT, iVAT): `g' = sum_k <g, d_k> d_k`. There it
is one layer of attention over a recurrent net; here it is all heads of a transformer together (one norm over heads,
queries and keys of an example), or each head alone (`by="head"`), and the pattern itself where asked (`of="pattern"`;
changes keep a row's sum, weights may fall below 0). For a small radius the metric falls by `radius ||g||`, which no
other change of that norm exceeds. `steps` above 1 takes the slope again at the changed attention; the lowest is kept.
Random changes are normal draws of equal norm on the same keys.
Cost: five passes, then three for each radius, cell, step and draw; without a metric three more for each `power`.
Limits: attention is held as rows by keys, so short inputs; a local search, so a lower bound of the worst change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.edits.edits import Add
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import head_name
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import real_positions, site_inputs
from interp.hooks.sites import Site, parse
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.metrics.reading import on, reading
from interp.metrics.shipped import KL, Reading, narrow
from interp.provenance import about
from interp.records import Method, register
from interp.results.intervals import spearman
from interp.robustness.directions import Change, ScoreSpace, inner, scaled, spanned, unit
from interp.robustness.result import NUMBERS, AttentionPerturbation

if TYPE_CHECKING:
    from interp.model import Model

NEAR = 0.1
"""How far from 0 the divergence's slope is taken."""


@torch.enable_grad()
def perturb_attention(
    model: Model,
    data: Any,
    *,
    metric: Metric | None = None,
    heads: str = "L*.H*",
    by: Literal["all", "head"] = "all",
    of: Literal["scores", "pattern"] = "scores",
    along: Literal["gradient", "differences"] = "gradient",
    radii: Sequence[float] = (0.1, 0.3, 1.0, 3.0),
    steps: int = 1,
    draws: int = 5,
    power: int = 3,
    seed: int = 0,
) -> AttentionPerturbation:
    """`metric` falls as far as it can; without one the answer moves as far as it can. `heads` is a site pattern."""
    _check(by, of, along, radii, steps, draws, power)
    radii = sorted(radii)
    model.ready()
    x, metric = model.inputs(data), on(model, metric)
    with reading(model, metric):
        ground = _Ground.of_run(model, x, metric, heads, of)
        space = ground.space(by)
        plain = ground.measured({})
        slope = space.projected(_slope(ground, space, power, seed))
        between = space.differences(ground.attention) if along == "differences" else None
        ways = {cell: _way(space.only(slope, cell), space, cell, between) for cell in space.cells}
        rate = torch.stack([-inner(slope, way) for way in ways.values()])
        worst = [[_worst(ground, space, plain, cell, radius, way, between, steps) for cell, way in ways.items()]
                 for radius in radii]  # fmt: skip
        random = [[_random(ground, space, plain, radius, seed + 1 + n) for n in range(draws)] for radius in radii]
    found = torch.stack([torch.stack(one) for one in worst]).permute(2, 0, 1, 3)
    count = (len(NUMBERS), len(radii), 0, len(space.cells), x.batch)
    drawn = torch.stack([torch.stack(one) for one in random]).permute(3, 0, 1, 2, 4) if draws else torch.empty(count)
    how = {"by": by, "of": of, "along": along, "steps": steps, "seed": seed, "metric": metric_name(metric)}
    meta = {**about(model.module, x), "method": "perturb_attention", **how}
    return AttentionPerturbation(
        tuple(space.cells), tuple(map(float, radii)), found, drawn, finite(plain.metric, "metrics"), rate, meta
    )


def _check(by: str, of: str, along: str, radii: Sequence[float], steps: int, draws: int, power: int) -> None:
    wanted = {"by": (by, ("all", "head")), "of": (of, ("scores", "pattern")),
              "along": (along, ("gradient", "differences"))}  # fmt: skip
    for name, (given, known) in wanted.items():
        if given not in known:
            raise InputsError(f"{name}= is one of {', '.join(map(repr, known))}; got {given!r}.")
    if not radii or any(not radius > 0 for radius in radii):
        raise InputsError(f"radii= is at least one number above 0; got {list(radii)}.")
    if steps < 1 or power < 1 or draws < 0:
        raise InputsError(f"steps= and power= are at least 1, draws= at least 0; got {steps}, {power} and {draws}.")


@dataclass(frozen=True, eq=False)
class _Seen:
    """One run: the metric [example], the first answer, what heads are worth [example, head], their weights by site."""

    metric: Tensor
    answer: Tensor
    worth: Tensor
    looks: Change

    def beside(self, plain: _Seen) -> Tensor:
        """The four NUMBERS [number, example], compared with the plain run."""
        same = (self.answer == plain.answer).flatten(1).all(1).double()
        kept = spearman(self.worth, plain.worth)
        return torch.stack([self.metric - plain.metric, same, kept, 1 - _moved(self.looks, plain.looks)])


@dataclass(frozen=True, eq=False)
class _Ground:
    """The model, the inputs, how the answer is judged, and the attention that is changed."""

    model: Model
    x: Inputs
    metric: Metric
    sites: tuple[Site, ...]
    attention: Change
    seen: Change
    flat: bool
    """Whether the metric has no slope at the plain run."""

    @classmethod
    def of_run(cls, model: Model, x: Inputs, metric: Metric | None, heads: str, of: str) -> _Ground:
        """The plain run."""
        if parse(heads).component not in ("attention", ""):
            raise SiteError(f"heads={heads!r} is no pattern of heads: write 'L*.H*', or 'L1.H2'.")
        sites = tuple(model.anatomy.sites(f"{heads}.{of}"))
        scored = {site: replace(site, component="scores") for site in sites}
        tape = model.run(x, record=dict.fromkeys([*sites, *scored.values()]))
        seen = {str(site): _seen(model, x, one, tape[one]) for site, one in scored.items()}
        judge = KL.to(tape["logits"], x) if metric is None else metric
        return cls(model, x, judge, sites, {str(site): tape[site] for site in sites}, seen, metric is None)

    def space(self, by: str) -> ScoreSpace:
        """What may be changed, in one cell or in one a head."""
        named: dict[str, tuple[str, int]] = {}
        for site in self.sites:
            every = self.model.anatomy.layer(site).heads_of(site)
            named |= {head_name(site.tower, site.layer or 0, head): (str(site), n) for n, head in enumerate(every)}
        cells = {"all": list(named.values())} if by == "all" else {name: [one] for name, one in named.items()}
        return ScoreSpace(self.seen, cells)

    def slope(self, change: Change) -> tuple[Tensor, Change]:
        """The metric [example] at a change, and its gradient there."""
        held = {name: value.to(self.attention[name]).requires_grad_() for name, value in change.items()}
        tape = self.model.run(self.x, edits=[Add(name, value) for name, value in held.items()], grad=True)
        score = judged(self.metric, self.x, tape["logits"])
        found = torch.autograd.grad(score.sum(), list(held.values()), allow_unused=True)
        slopes = zip(held.items(), found, strict=True)
        return score.detach(), {n: torch.zeros_like(one) if g is None else g for (n, one), g in slopes}

    def measured(self, change: Change) -> _Seen:
        """What the model says, what its heads are worth to it, and where they look."""
        layers = [replace(site.whole, component="z") for site in self.sites]
        looks = [replace(site, component="pattern") for site in self.sites]
        edits = [Add(name, value.to(self.attention[name])) for name, value in change.items()]
        tape = self.model.run(self.x, edits=edits, record=dict.fromkeys([*layers, *looks]), grad=True)
        score = judged(self.metric, self.x, tape["logits"])
        z = [tape[site] for site in layers]
        slopes = torch.autograd.grad(score.sum(), z, allow_unused=True) if score.requires_grad else [None] * len(z)
        worth = [_worth(self, *one) for one in zip(layers, z, slopes, strict=True)]
        answer = narrow(tape["logits"].detach(), self.x, Reading()).argmax(-1).cpu()
        patterns = {str(site): torch.where(self.seen[str(at)], tape[site].detach().double(), 0.0)
                    for site, at in zip(looks, self.sites, strict=True)}  # fmt: skip
        return _Seen(score.detach().double().cpu(), answer, torch.cat(worth, 1), patterns)


def _seen(model: Model, x: Inputs, site: Site, scores: Tensor) -> Tensor:
    """Which keys each real query sees [row, head, query, key]."""
    if len(scores) != x.batch:
        raise InputsError(
            f"{site} has {len(scores)} rows for {x.batch} examples (images of their own, windows), so there is no norm"
            " for each example: give one image for each example, or name heads of another tower."
        )
    queries = site_inputs(model.anatomy, x, site).valid.to(scores.device)
    if queries.shape != (len(scores), scores.shape[2]):
        raise InputsError(f"{site} has {scores.shape[2]} queries a row, and its inputs {queries.shape[1]} positions.")
    return (scores > torch.finfo(scores.dtype).min / 2) & queries[:, None, :, None]


def _worth(ground: _Ground, site: Site, z: Tensor, slope: Tensor | None) -> Tensor:
    """[example, head], `z . dM/dz` summed over real positions."""
    if slope is None:
        return torch.zeros(len(z), z.shape[2], dtype=torch.float64)
    each = (z.detach().double() * slope.double()).sum(-1).cpu()
    real = real_positions(ground.model.anatomy, ground.x, site, each.shape[:2]).cpu()
    return torch.where(real[..., None], each, 0.0).sum(1)


def _moved(now: Change, before: Change) -> Tensor:
    """[example], half the absolute change of weights, as a mean over heads and the queries that see anything."""
    total, count = torch.zeros(1), torch.zeros(1)
    for site, value in now.items():
        total = total + (value - before[site]).abs().sum((1, 2, 3)).cpu() / 2
        count = count + (before[site].sum(-1) > 0).sum((1, 2)).cpu()
    return total / count.clamp(min=1)


def _slope(ground: _Ground, space: ScoreSpace, power: int, seed: int) -> Change:
    """The metric's gradient at the plain run; where it has none there, its curvature's largest direction."""
    nothing = {site: torch.zeros_like(mask, dtype=torch.float32) for site, mask in space.seen.items()}
    if not ground.flat:
        return ground.slope(nothing)[1]
    way = unit(space.random(seed))
    for _ in range(power):
        slope = space.projected(ground.slope(scaled(way, NEAR))[1])
        way = unit({site: -value for site, value in slope.items()})
    return slope


def _way(slope: Change, space: ScoreSpace, cell: str, between: Sequence[Change] | None) -> Change:
    """The unit direction in which the metric falls."""
    if between is not None:
        slope = spanned(slope, [unit(space.only(one, cell)) for one in between])
    return unit({site: -value for site, value in slope.items()})


def _worst(
    ground: _Ground, space: ScoreSpace, plain: _Seen, cell: str, radius: float, way: Change,
    between: Sequence[Change] | None, steps: int,
) -> Tensor:  # fmt: skip
    """[number, example] at the lowest metric that was met."""
    change = scaled(way, radius)
    best = ground.measured(change).beside(plain)
    for _ in range(steps - 1):
        slope = space.only(space.projected(ground.slope(change)[1]), cell)
        change = scaled(_way(slope, space, cell, between), radius)
        found = ground.measured(change).beside(plain)
        best = torch.where(found[:1] < best[:1], found, best)
    return _finite(best)


def _random(ground: _Ground, space: ScoreSpace, plain: _Seen, radius: float, seed: int) -> Tensor:
    """[cell, number, example] of one draw, its part in each cell made as long as the radius."""
    draw = space.random(seed)
    parts = (scaled(unit(space.only(draw, cell)), radius) for cell in space.cells)
    return torch.stack([_finite(ground.measured(part).beside(plain)) for part in parts])


def _finite(found: Tensor) -> Tensor:
    """The numbers, whose first is finite; a rank correlation of equal values is none."""
    finite(found[[0, 1, 3]], "what changed attention does")
    return found


register(
    Method(
        "interp.robustness.perturb_attention",
        number="the metric under the worst change of attention within a radius, minus that of the plain run",
        shown="curve",
        needs=("metric",),
        papers=("2009.12064", "2104.08763", "1704.03976"),
        passes=lambda t: 5 + 3 * 2 * 3,
        example=lambda t: perturb_attention(t.model, t.base, metric=t.metric, heads=t.heads, radii=(0.5, 1.0), draws=2),
    )
)
