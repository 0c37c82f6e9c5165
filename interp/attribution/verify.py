"""How far estimates are from exact patching: the same cells, patched, in both directions.

All cells where that is affordable, else a sample: the cells with the largest estimates for certain, the rest in strata
of the estimate's rank, and sums weighted by the inverse of each cell's chance of being drawn. Reported are Pearson and
Spearman correlations over all cells, without the largest one, and over the cells that can change at all (identical
positions are exactly 0 on both sides and flatter a correlation); the overlap of the largest; the worst miss. What was
not patched one by one is patched in random halves together (the group test of AtP*, arXiv 2403.00745): if a half moves
the metric, something in it was missed. A sample's correlations have 95% intervals, for the cells that were not drawn.
Cost: as `interp.patch` of the cells that are patched and of eight more from the first layer on, and the estimate once
more for the other direction; "passes" says how many forward passes of the base that is and what all cells would take,
"instead" is there where `interp.patch` alone costs no more.
Limits: under sampling the overlap is among the cells patched; a half whose members cancel passes the group test; the
interval of ten cells or so may leave out the correlation over all, since a single large cell among hundreds is mostly
not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.attribution.pair import FlatMetric, Pair
from interp.cells.calls import CHUNK
from interp.cells.shards import Frame
from interp.cells.work import Builder
from interp.contents import content
from interp.hooks.drive.questions import Cell
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.metrics.judge import Metric
from interp.patching.cells import Target
from interp.patching.exact import Prepared, Question, prepare
from interp.patching.sources import Given
from interp.patching.swept import Patches

if TYPE_CHECKING:
    from interp.model import Model

Estimate = Callable[[Pair], Tensor]
AFFORDABLE = 4096
"""Patches times rows that are made without being asked."""
SAMPLE = 256
STRATA = 4
TOP = 10
HALVES = 8
CHANCE = 4.1
"""Of a variance with seven degrees of freedom: one time in forty it is as many times what was found."""
RESAMPLES = 300


@dataclass(frozen=True, eq=False)
class Check:
    """One direction before anything is patched: what is, and what its numbers need in addition to the exact effects."""

    ready: Prepared
    """The cells to patch: those that were drawn, then random halves of the others."""
    frame: Frame


@dataclass(frozen=True, eq=False)
class Checked:
    """The cells that were patched: their numbers, exact effects [cell, row], and how many cells each of them
    represents; and the effects of random halves of the others [half]."""

    numbers: Tensor
    exact: Tensor
    weights: Tensor
    halves: Tensor
    owed: Tensor
    """What the estimates say of each half."""


def checks(
    pair: Pair, values: Tensor, estimate: Estimate, *, how: Literal["auto", "all"] | int, magnitudes: bool, seed: int,
    out: str | Path | None = None, product: str | None = None,
) -> tuple[dict[str, Check], dict[str, Any]]:  # fmt: skip
    """What is patched, by direction, and why one of them is left out."""
    if not (how in ("auto", "all") or (isinstance(how, int) and how > 0)):
        raise InputsError(f"verify is 'auto', 'all', a number of cells, or 0 for none; got {how!r}.")
    set_up = partial(_direction, how=how, magnitudes=magnitudes, seed=seed, out=out, product=product)
    found = {"source into base": set_up(pair, values)}
    other = pair.reverse()
    if other is not None:
        try:
            back = estimate(other)
        except FlatMetric as why:  # compared with the source's own run, say: no estimate can start there
            return found, {"base into source left out": str(why)}
        found["base into source"] = set_up(other, back)
    return found, {}


def _direction(
    pair: Pair, values: Tensor, *, how: Any, magnitudes: bool, seed: int, out: str | Path | None, product: str | None
) -> Check:
    ready = _prepared(pair, seed, out, product)
    live = torch.tensor([bool(cell.changed.any()) for cell in ready.cells])
    draw = torch.Generator().manual_seed(seed)
    numbers, weights = _drawn(values.abs().mean(1), live, _count(how, int(live.sum()), values.shape[1]), draw)
    rest = live.clone()
    rest[numbers] = False
    halves = _halves(rest, draw)
    owed = torch.tensor([float(values[half].mean(1).sum()) for half in halves], dtype=torch.float64)
    some = _some(ready, numbers.tolist(), halves)
    sites, columns = pair.labels()
    facts = {"sites": list(sites), "columns": None if columns is None else list(columns), "magnitudes": magnitudes,
             "rest": int(rest.sum()), "costs": _costs(pair, ready, some.cells), "halves": halves}  # fmt: skip
    tensors = {"numbers": numbers, "weights": weights, "live": live, "owed": owed,
               "estimate": values[numbers].mean(1)}  # fmt: skip
    return Check(some, Frame(facts, tensors))


def _some(ready: Prepared, numbers: Sequence[int], halves: Sequence[Sequence[int]]) -> Prepared:
    """The cells of these numbers, then the halves, each as one cell."""
    cells = [*(ready.cells[n] for n in numbers), *(_together([ready.cells[n] for n in half]) for half in halves)]
    return replace(ready, grid=replace(ready.grid, cells=tuple(cells), labels=("",) * len(cells)))


def report(frame: Frame, exact: Tensor) -> dict[str, Any]:
    """What the exact effects [cell, row] of one direction come to, as plain numbers for the result's meta data."""
    held = {name: one.bool() if name == "live" else one for name, one in frame.tensors.items()}
    numbers = held["numbers"]
    halves = exact[len(numbers) :].mean(1)
    checked = Checked(numbers, exact[: len(numbers)], held["weights"], halves, held["owed"])
    made = _report(frame, held["estimate"], held["live"], checked)
    if len(halves):
        made["group test"] = _group_test(checked, int(frame.facts["rest"]), made["largest exact"])
    return made | dict(frame.facts["costs"])


def _costs(pair: Pair, ready: Prepared, cells: Sequence[Cell]) -> dict[str, Any]:
    """In forward passes of the base, which a sweep's time goes into: this check, and every cell patched exactly."""
    one = max(1, ready.sweep.cost_of_pass(ready.cells[0]))
    here, every = (2 + ready.sweep.cost(some) / one for some in (cells, ready.cells))
    made: dict[str, Any] = {"passes": round(here, 1), "passes of all": round(every, 1)}
    if every <= here + pair.passes:
        made["instead"] = (
            f"interp.patch gives the exact effects of all {len(ready.cells)} cells for about {every:.3g} forward"
            f" passes, no more than this estimate ({pair.passes}) with its check ({here:.3g})"
        )
    return made


def _count(how: Any, live: int, rows: int) -> int:
    if how == "auto":
        return live if live * rows <= AFFORDABLE else min(live, SAMPLE)
    return live if how == "all" else min(live, int(how))


def _drawn(size: Tensor, live: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cells to patch, and one over each one's chance: half are the largest, the others as many of each stratum of
    ranks, every stratum as many times longer than the one before: cells that are missed are mostly near the largest."""
    order = live.nonzero().flatten()
    order = order[size[order].argsort(descending=True, stable=True)]
    if count >= len(order):
        return order, torch.ones(len(order), dtype=torch.float64)
    sure = max(1, count // 2)
    numbers, weights = [order[:sure]], [torch.ones(sure, dtype=torch.float64)]
    strata, left = min(STRATA, count - sure), count - sure
    ends = [max(sure + n, round(sure * (len(order) / sure) ** (n / strata))) for n in range(1, strata + 1)]
    for n, (low, high) in enumerate(pairwise([sure, *ends])):
        take = min(high - low, -(-left // (strata - n)))
        numbers.append(order[low:high][torch.randperm(high - low, generator=draw)[:take]])
        weights.append(torch.full((take,), (high - low) / take, dtype=torch.float64))
        left -= take
    return torch.cat(numbers), torch.cat(weights)


def _prepared(pair: Pair, seed: int, out: str | Path | None = None, product: str | None = None) -> Prepared:
    """The pair's cells as `interp.patch` has them; what a head writes is patched as its z, which makes it."""
    new = Given({site: pair.given(site) for site in pair.whole}, "given", pair.aligned)
    return prepare(question(pair, seed, out), pair.base, new, {"": pair.metric}, product=product)


def question(pair: Pair, seed: int, out: str | Path | None) -> Question:
    """The pair as what is patched where."""
    sites = [Site(s.tower, s.layer, "z", s.heads) if s.component == "result" else s for s in pair.chosen]
    targets = [Target(((site, None),), str(site)) for site in sites]
    budget = None if out is None else CHUNK
    return Question(pair.model, targets, pair.positions, seed=seed, out=out, budget=budget, bar=False)


def built(
    model: Model,
    *,
    x: Inputs,
    new: Given,
    metric: Metric,
    numbers: Sequence[int],
    halves: Any,
    product: str,
    **how: Any,
) -> Patches:  # fmt: skip
    """The cells that are patched, in another process."""
    ready = prepare(Question(model, **how, bar=False), x, new, {"": metric}, product=product)
    return Patches(_some(ready, numbers, halves))


def work_of(check: Check, task: Mapping[str, Any]) -> Patches:
    """What is patched, as work; the cells were drawn by their estimates, so they belong to the task."""
    asked, facts, numbers = check.ready.question, check.frame.facts, check.frame.tensors["numbers"].tolist()
    how = {name: getattr(asked, name) for name in ("targets", "positions", "seed", "budget")}
    how |= {"x": check.ready.sweep.base, "new": check.ready.new, "metric": check.ready.judges.judges[""].metric,
            "numbers": numbers, "halves": facts["halves"], "product": check.ready.sweep.product}  # fmt: skip
    drawn = content(str([numbers, facts["halves"]]))
    return Patches(check.ready, {**task, "cells": drawn}, Builder("interp.attribution.verify:built", how))


def _report(frame: Frame, estimate: Tensor, live: Tensor, checked: Checked) -> dict[str, Any]:
    exact = (checked.exact.abs() if frame.facts["magnitudes"] else checked.exact).mean(1)
    weights = checked.weights
    made: dict[str, Any] = {"cells": len(live), "changed": int(live.sum()), "patched": len(exact)}
    if not len(exact):
        return made
    still = int((~live).sum())  # known to be 0 on both sides without patching
    x, y = (torch.cat([v, torch.zeros(still, dtype=torch.float64)]) for v in (estimate, exact))
    all_weights = torch.cat([weights, torch.ones(still, dtype=torch.float64)])
    small = exact.abs() < exact.abs().max()
    k = min(TOP, -(-len(exact) // 3))
    worst = int((estimate - exact).abs().argmax())
    made |= {
        "pearson": pearson(x, y, all_weights),
        "spearman": pearson(ranks(x, all_weights), ranks(y, all_weights), all_weights),
        "pearson changed": pearson(estimate, exact, weights),
        "spearman changed": pearson(ranks(estimate, weights), ranks(exact, weights), weights),
        "pearson without the largest": pearson(estimate[small], exact[small], weights[small]),
        f"top {k} overlap": len(_top(estimate, k) & _top(exact, k)) / k,
        "worst miss": {**_place(frame, int(checked.numbers[worst])), "estimate": float(estimate[worst]),
                       "exact": float(exact[worst])},
        "largest exact": float(exact.abs().max()),
    }  # fmt: skip
    if len(checked.halves):
        made |= {f"{name} interval": ends for name, ends in _intervals(x, y, all_weights, checked).items()}
    return made


def _intervals(x: Tensor, y: Tensor, weights: Tensor, checked: Checked) -> dict[str, tuple[float, float] | None]:
    """95% intervals of the correlations over all cells, for those that were not drawn: what resampling the patched
    cells gives, and what Fisher's transformation gives for as many (of ranks, where every cell counts alike, for as
    many as their weights come to), the wider of both; and Pearson's lower end no higher than the random halves leave
    it, if they moved otherwise than the estimates say and than the cells drawn of them did."""
    count, draw = len(checked.numbers), torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"pearson": [], "spearman": []}
    fixed = torch.arange(count, len(x))
    for _ in range(RESAMPLES):
        some = torch.cat([torch.randint(count, (count,), generator=draw), fixed])
        a, b, w = x[some], y[some], weights[some]
        for name, (left, right) in {"pearson": (a, b), "spearman": (ranks(a, w), ranks(b, w))}.items():
            value = pearson(left, right, w)
            found[name] += [] if value is None else [value]
    plain = {"pearson": pearson(x, y, weights), "spearman": pearson(ranks(x, weights), ranks(y, weights), weights)}
    made: dict[str, tuple[float, float] | None] = {}
    for name, value in plain.items():
        if value is None or not found[name]:
            made[name] = None
            continue
        ends = torch.tensor(found[name], dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        alike = checked.weights.sum() ** 2 / checked.weights.square().sum()
        n = count if name == "pearson" else float(alike)
        spread, sure = 1.96 / max(n - 3, 0.5) ** 0.5, 1 - (n + 1) ** -2
        middle = math.atanh(max(-sure, min(sure, value)))
        made[name] = min(ends[0], math.tanh(middle - spread)), max(ends[1], math.tanh(middle + spread))
    if made["pearson"] is not None and plain["pearson"] is not None:
        low, high = made["pearson"]
        made["pearson"] = min(low, plain["pearson"] * _unseen(x, y, weights, checked)), high
    return made


def _unseen(x: Tensor, y: Tensor, weights: Tensor, checked: Checked) -> float:
    """By how much misses among the cells that were not drawn may lower the correlation. A random half of them moves the
    metric by what the estimates owe and half of the sum of the misses; over halves that varies by a quarter of the
    misses' squares, as far as effects add up."""
    if len(checked.halves) < 2:
        return 1.0
    squares = CHANCE * 4 * float((checked.halves - checked.owed).var())
    drawn = checked.weights > 1
    seen = float(((x - y)[: len(drawn)].square() * (checked.weights - 1))[drawn].sum())
    share = weights / weights.sum()
    total = float((weights * (y - (share * y).sum()).square()).sum())
    return (total / (total + max(0.0, squares - seen))) ** 0.5 if total > 0 else 1.0


def _top(x: Tensor, k: int) -> set[int]:
    return set(x.abs().topk(k).indices.tolist())


def _place(frame: Frame, number: int) -> dict[str, Any]:
    sites, columns = frame.facts["sites"], frame.facts["columns"]
    return {"site": sites[number], "position": None if columns is None else columns[number % len(columns)]}


def pearson(x: Tensor, y: Tensor, weights: Tensor) -> float | None:
    """The weighted correlation; None where one side does not vary."""
    if len(x) < 2:
        return None
    share = weights / weights.sum()
    x, y = x - (share * x).sum(), y - (share * y).sum()
    scale = ((share * x * x).sum() * (share * y * y).sum()).sqrt()
    return float((share * x * y).sum() / scale) if float(scale) > 0 else None


def ranks(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted ranks, ties in their middle: the weight below a value plus half of the weight at it."""
    values, at = x.unique(return_inverse=True)
    mass = torch.zeros(len(values), dtype=torch.float64).index_add_(0, at, weights)
    return (mass.cumsum(0) - mass / 2)[at]


def _halves(rest: Tensor, draw: torch.Generator) -> list[list[int]]:
    """Random halves of the cells that are not patched."""
    numbers = rest.nonzero().flatten()
    picks = [numbers[torch.rand(len(numbers), generator=draw) < 0.5].tolist() for _ in range(HALVES)]
    return [half for half in picks if half]


def _together(cells: Sequence[Cell]) -> Cell:
    """One cell that is all of these, which the sweep answers from the first layer and column that it changes on."""
    by_site: dict[Site, Cell] = {}
    for cell in cells:
        known = by_site.get(cell.site)
        by_site[cell.site] = cell if known is None else replace(cell, where=known.where | cell.where)
    first, *others = by_site.values()
    return replace(first, also=tuple(others))


def _group_test(checked: Checked, count: int, largest: float) -> dict[str, Any]:
    """What the halves move, compared with the largest cell that was patched."""
    moved = checked.halves.tolist()
    most = max(moved, key=abs)
    return {"halves": len(moved), "of": count, "largest": most, "share of the largest cell":
            abs(most) / largest if largest else None}  # fmt: skip
