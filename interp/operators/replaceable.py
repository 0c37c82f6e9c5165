"""Which heads can be replaced by another attention, and what the model loses?

For every head, the metric is taken with the operator at that head alone; then with it at all of them; and heads are
replaced together, the one with the smallest loss alone first, as long as the mean metric stays within `tolerance` of
what it was: a head that breaks that is left as it is and the next one tried. What an operator would save is its own
count against softmax attention's, at the length of the data: of multiplications (`saved`), and of the numbers that one
more token reads while generating (`smaller`: a state, or the keys and values seen). With `timed=True` both attend to
the first layer's call in turns, where the operator has a fast version; `faster` is attention's time over its time.
Cost: a forward pass a head for its own loss, one for all, and one a head for the set. Limits: the set is greedy, in
one order, and judged on the data that chose it unless `heldout` is given; heads are swapped in the whole text, so that
operators which cannot go on from a cache are fine here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import heads_at
from interp.hooks.stand.part import Part
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Window
from interp.metrics.edited import EditedScores
from interp.metrics.named import metric_name
from interp.operators.common.operator import Operator, softmax_numbers
from interp.operators.readouts import label
from interp.operators.visiting import one_call_each, places_of
from interp.operators.windows.masked import Masked
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Replaceable(HeadResult):
    """What the metric loses by an operator at each head, at all, and at those that were chosen together."""

    STEM, TITLE = "replaceable", "change of the metric"

    sites: tuple[str, ...]
    values: Tensor
    """[head, example]: metric with the operator at this head - metric."""
    before: Tensor
    """[example]: the metric of the model as it is."""
    every: Tensor
    """[example]: the metric with the operator at all heads."""
    kept: Tensor
    """[head]: whether it is among those replaced together."""
    together: Tensor
    """[example]: the metric with these replaced; held out where that was given."""
    plain: Tensor
    """[example]: the metric of the model as it is; held out where that was given."""
    saved: float
    """Multiplications of attention over those of the operator, at the length of the data."""
    smaller: float
    """Numbers that attention reads for one more token while generating, over those that the operator does."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def faster(self) -> float | None:
        """Seconds of attention over the operator's, where these were taken."""
        taken = self.meta.get("seconds")
        return None if taken is None else float(taken["attention"] / taken["operator"])

    @property
    def replaced(self) -> tuple[str, ...]:
        """The heads that were replaced together."""
        return tuple(site for site, kept in zip(self.sites, self.kept.tolist(), strict=True) if kept)

    def tables(self) -> tuple[HeadTable, ...]:
        """The change of the metric by each head alone, and whether it is among those replaced together."""
        return (HeadTable(self.sites, self.values, "replaceable", more={"kept": self.kept}),)

    def __repr__(self) -> str:
        means = [float(x.mean()) for x in (self.before, self.every, self.plain, self.together)]
        return (
            f"Replaceable by {self.meta.get('operator')}: {int(self.kept.sum())} of {len(self.sites)} heads together,"
            f" the metric {means[2]:.4g} -> {means[3]:.4g}; all heads {means[0]:.4g} -> {means[1]:.4g}"
        )


def replaceable(
    model: Model,
    data: Any,
    operator: Operator,
    *,
    metric: Any,
    sites: str = "L*.H*",
    tolerance: float = 0.1,
    heldout: Any = None,
    timed: bool = False,
) -> Replaceable:
    """Put the operator at each head of `sites`, at all, and at as many together as `tolerance` allows: the part of the
    mean metric's size that may be lost. A task's `metric` reads its `clean` inputs; `heldout` are inputs, with
    `metric` as a function of logits and inputs, or a pair (inputs, metric)."""
    if not isinstance(operator, Operator) or not tolerance >= 0:
        raise InputsError(
            f"expected an operator, such as Linear('L*.H*'), and a tolerance of at least 0, got {operator!r} and"
            f" {tolerance}."
        )
    x = model.inputs(data)
    places = places_of(model, sites)
    names = tuple(name for site in places for name in heads_at(site, model.anatomy.layer(site).heads_of(site)))
    scores = EditedScores(model, x, metric)
    values = torch.stack([scores([replace(operator, site=name)]) - scores.base for name in names])
    kept = _greedy(scores, operator, names, values.mean(1), tolerance)
    there, judge = heldout if isinstance(heldout, tuple) else (heldout, metric)
    others = scores if there is None else EditedScores(model, model.inputs(there), judge)
    together = [replace(operator, site=name) for name, one in zip(names, kept, strict=True) if one]
    part = one_call_each(model, x, places[:1])[str(places[0])]
    return Replaceable(
        names, values, scores.base, scores([replace(operator, site=name) for name in names]), torch.tensor(kept),
        others(together), others.base.clone(), operator.saving(part),
        softmax_numbers(part) / operator.numbers(part),
        meta={**about(model.module, x), "method": "replaceable", "operator": label(operator), "tolerance": tolerance,
              "metric": metric_name(metric), "seconds": _seconds(operator, part) if timed and operator.fast else None},
    )  # fmt: skip


def _seconds(operator: Operator, part: Part, rounds: int = 3) -> dict[str, float]:
    """The best times of attention as it is and of the operator, in turns."""
    sides: dict[str, Callable[[], Tensor | None]] = {
        "attention": lambda: attend(part.q, part.k, part.v, **part.arguments).z,
        "operator": lambda: operator.z(part),
    }
    taken = dict.fromkeys(sides, math.inf)
    with torch.no_grad():
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.perf_counter()
                _done(side())
                taken[name] = min(taken[name], time.perf_counter() - start)
    return taken


def _done(z: Tensor | None) -> None:
    """Wait for a device that computes behind our back."""
    assert z is not None
    if z.device.type != "cpu":
        z.flatten()[0].item()


def _greedy(
    scores: EditedScores, operator: Operator, names: tuple[str, ...], change: Tensor, tolerance: float
) -> list[bool]:
    """Which heads are replaced together, those that change the metric least alone are tried first."""
    base, kept = float(scores.base.mean()), [False] * len(names)
    least = base - tolerance * abs(base)
    for n in change.argsort(descending=True, stable=True).tolist():
        tried = [name for name, one in zip(names, [*kept[:n], True, *kept[n + 1 :]], strict=True) if one]
        kept[n] = float(scores([replace(operator, site=name) for name in tried]).mean()) >= least
    return kept


def _example(t: Trial) -> Replaceable:
    return replaceable(t.model, t.base, Masked(t.heads, Window(3)), metric=t.metric, sites=t.heads)


register(
    Method(
        "interp.operators.replaceable",
        number="change of the metric with the operator at a head, replaced minus base",
        shown="bars",
        needs=("metric",),
        passes=lambda t: 3 + 2 * t.count + 1,
        example=_example,
    )
)
