"""Handing a metric what it reads: for the time of a call the model answers with that place instead of its logits.

Every engine that takes `metric=` runs inside `reading(model, metric)`, by the decorator `hands_over` or with its own
`with`. What a metric reads is its attribute `site`; without one it reads logits, and engines go on as they always did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from torch import Tensor

from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.answer import answering
from interp.hooks.run.tape import tower_inputs
from interp.hooks.stand.output import answers
from interp.metrics.ids import MetricError
from interp.metrics.shipped import Reading, RecoveredFraction
from interp.prompts.vocabulary import Vocabulary

if TYPE_CHECKING:
    from interp.model import Model

P = ParamSpec("P")
R = TypeVar("R")


def site_of(metric: Any) -> str | None:
    """The place that a metric, or every one of several, reads; None for logits."""
    every = list(metric.values()) if isinstance(metric, Mapping) else [metric]
    found = list(dict.fromkeys(getattr(one, "site", None) for one in every))
    if len(found) > 1:
        said = ", ".join("logits" if one is None else repr(one) for one in found)
        raise MetricError(
            f"these metrics read different places ({said}), and one call reads one place: make one call for each place"
        )
    return found[0] if found else None


def on(model: Model, metric: Any) -> Any:
    """The metric, or each of several, with ids in the place of words; raises where it is no metric."""
    if isinstance(metric, Mapping):
        return {name: on(model, one) for name, one in metric.items()}
    if metric is not None and not callable(metric):
        raise MetricError(
            f"a metric is a function of logits and inputs, such as interp.metrics.LogitDifference(' Mary', ' John') or"
            f" the metric of a task (interp.compare(m, clean, corrupt, answer, wrong).metric); got {metric!r:.80}"
        )
    if isinstance(metric, RecoveredFraction):
        return replace(metric, metric=on(model, metric.metric))
    return metric.with_ids(Vocabulary(model).single) if isinstance(metric, Reading) else metric


@contextmanager
def reading(model: Model, metric: Any, *others: Any) -> Iterator[Any]:
    """While inside, the model (and others that are given, unless None) answers with what the metric reads; gives the
    metric with its words as ids."""
    metric = on(model, metric)
    site = site_of(metric)
    with ExitStack() as undo:
        if site is not None or answers():
            for one in (model, *(other for other in others if other is not None)):
                anatomy = one.ready() if site is not None else one.anatomy
                undo.enter_context(answering(one.module, anatomy, site, family=one.family))
        yield metric


def hands_over(call: Callable[P, R]) -> Callable[P, R]:
    """A call (model, ..., metric=...) whose metric may read any place."""

    @functools.wraps(call)
    def handed(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0] if args else kwargs["model"]
        with reading(model, kwargs.get("metric"), kwargs.get("source_model")) as metric:
            if "metric" in kwargs:
                kwargs["metric"] = metric
            return call(*args, **kwargs)

    return handed


def handed_over(metric: Any) -> None:
    """Raise where a metric would be given something else than what it reads."""
    site, stack = getattr(metric, "site", None), answers()
    now = stack[-1].name if stack else None
    if site != now:
        raise MetricError(
            f"the metric {metric!r} reads {site or 'logits'!r}, and it is handed {now or 'logits'!r}: this call does"
            " not read other places than logits"
        )


def positions_read(x: Inputs) -> Tensor:
    """Which positions of the place that is read are real [row, position]."""
    site = answers()[-1].site
    return x.valid if site is None else tower_inputs(x, site).valid


def fitted(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Which positions [row, column] of the place that is read are real: those of its tower, or all of another number
    of positions (pooled sound, a tower that shortens words) where the tower has no padding."""
    if mask.shape == (rows, columns):
        return mask
    if rows != len(mask) or not bool(mask.all()):
        raise MetricError(
            f"the place that is read is {[rows, columns]} [row, position], and its tower's inputs {list(mask.shape)}:"
            " which of its positions are real is not known; run inputs without padding"
        )
    return mask.new_ones(rows, columns)
