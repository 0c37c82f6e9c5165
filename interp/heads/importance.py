"""Which heads matter: removal, gradients, attribution and what is seen from outside, side by side, with intervals.

Each measure is a number per head and example; the estimate is its mean, the interval a bootstrap over examples (over
templates, then prompts, where a task names them), and `.agreement()` says how far the measures rank heads alike: seldom
far, which is the reason to look at more than one. `by` names measures or groups of them:

    ablation      zero, mean, resample: what the metric loses without the head, by exact patching. Mean: over the real
                  positions of this data; resample: a random other row's values, `draws` times
    gradient      also gradient-l2, gradient-token, gradient-signed (Michel et al. 2019;
    `interp/heads/measures/gradient.py`) attribution   relp; also atp, atp*, ig and the others of `interp.attribute`:
    what the metric would lose with the
                  source in the head's place (a task's corrupt prompts, else zeros), held against exact patching
    direct_effect what the head writes straight to the metric
    norm  entropy  confidence    how much it writes, how focused it is
    vit           prediction, probability, loss, kl, js: what zeroing changes in the prediction
    gates         learned gates (`interp.heads.gates`)
    fisher        also fisher-ratio, fisher-difference, which hold `data` against `retain=`

Positive numbers of ablation, attribution, probability and loss are what the model loses without the head. Ranks go by
magnitude there, by size elsewhere, and by the lowest entropy.
Cost, in forward and backward passes (`.meta["passes"]`): a sweep of L layers with H heads H(L+1)/2 by replay, and as
many again per draw and measure of ablation (those of `vit` share the sweep of zero); gradient and fisher 2, attribution
3 to 5 and its check, direct_effect 3, norm 1, entropy and confidence 2.
Limits: single heads, so a head that another one stands in for looks idle, to every measure but the gates; numbers hold
for this data, metric and ablation. Rankings of many heads are not tests of any one: see `.ranks()`.
LXT's authors state that LRP (relp, attnlrp, cp-lrp) is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.attribution.attribute import METHODS as ATTRIBUTIONS
from interp.attribution.attribute import attribute
from interp.heads.measures import change, entropy, fisher, gradient, norm, resample
from interp.heads.measures.asked import Asked, asked
from interp.heads.measures.measured import Measured
from interp.heads.measures.table import Importance
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.shipped import Reading
from interp.patching.direct_effect import direct_effect
from interp.patching.patch import patch
from interp.provenance import about
from interp.results.effects import Effects
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

GROUPS = {"ablation": ("zero", "mean", "resample"), "attribution": ("relp",), "vit": change.METHODS}
METHODS: tuple[str, ...] = (
    "zero", "mean", "resample", *gradient.METHODS, *ATTRIBUTIONS, "direct_effect", "norm", *entropy.METHODS,
    *change.METHODS, "gates", *fisher.METHODS,
)  # fmt: skip


def importance(
    model: Model,
    data: Any,
    *,
    by: str | Iterable[str] = ("zero", "gradient", "attribution"),
    metric: Metric | None = None,
    labels: Sequence[int] | Tensor | None = None,
    source: Any = None,
    retain: Any = None,
    heads: str | Iterable[str] = "L*.H*",
    draws: int = 3,
    verify: Literal["auto", "all"] | int = "auto",
    gates: dict[str, Any] | None = None,
    seed: int = 0,
) -> Importance:
    """Every head's importance on a task, or on inputs with a `metric` (higher is more of the behaviour studied).

    `labels` are the right answers' ids or classes where data is no task. `heads` are site patterns of any towers
    (["text.L*.H*", "vision.L*.H*"]). `source` is another side to resample from and attribute against; `retain` a second
    data set for fisher; `draws` how often resampling is drawn; `verify` as in `interp.attribute`; `gates` what is
    passed on to `interp.heads.gates`.
    """
    chosen = _methods(by)
    if draws < 1:
        raise InputsError(f"draws= is how often heads are resampled, at least 1; got {draws}.")
    start = time.perf_counter()
    question = asked(model, data, metric=metric, labels=labels, source=source, heads=heads)
    kept = None if retain is None else asked(model, retain, metric=metric, heads=heads)
    run = _Run(question, kept, draws, verify, dict(gates or {}), seed)
    found = {one.method: one for group in _shared(chosen) for one in run.measured(group)}
    measures = tuple(found[name] for name in chosen)
    classes = () if question.labels is None else tuple(str(row[0]) for row in question.labels)
    meta = {
        **about(model.module, question.x), "metric": repr(question.metric), "seed": seed, "draws": draws,
        "passes": {one.method: one.passes for one in measures},
        "notes": {one.method: dict(one.notes) for one in measures if one.notes},
        "seconds": round(time.perf_counter() - start, 3),
    }  # fmt: skip
    return Importance(question.names, question.towers, measures, question.groups, classes, meta, seed)


def _methods(by: str | Iterable[str]) -> list[str]:
    if not isinstance(by, Iterable):
        raise InputsError(f"by= is a measure or a list of measures, got {by!r}.")
    asked_for = [by] if isinstance(by, str) else list(by)
    found = list(dict.fromkeys(name for one in asked_for for name in GROUPS.get(one, (one,))))
    unknown = [name for name in found if name not in METHODS]
    if unknown or not found:
        there = ", ".join((*GROUPS, *METHODS))
        raise InputsError(f"no measure {unknown[0]!r}; there are {there}." if unknown else f"by= is empty: {there}.")
    return found


SHARED = (gradient.METHODS, fisher.METHODS, entropy.METHODS, ("zero", *change.METHODS))
"""Measures that read the same run."""


def _shared(chosen: list[str]) -> list[list[str]]:
    """The measures in groups that are taken together."""
    found: dict[int, list[str]] = {}
    for n, name in enumerate(chosen):
        home = next((i for i, group in enumerate(SHARED) if name in group), len(SHARED) + n)
        found.setdefault(home, []).append(name)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Run:
    asked: Asked
    retain: Asked | None
    draws: int
    verify: Any
    gates: dict[str, Any]
    seed: int

    def measured(self, names: list[str]) -> list[Measured]:
        """Measures that share a run."""
        first, asked = names[0], self.asked
        if first in gradient.METHODS:
            return gradient.measured(asked, names)
        if first in fisher.METHODS:
            return fisher.measured(asked, self.retain, names)
        if first in entropy.METHODS:
            return entropy.measured(asked, names)
        if first in ("zero", *change.METHODS):
            return self.removed(names)
        if first in ATTRIBUTIONS:
            return [self.attributed(first)]
        own: dict[str, Callable[[], Measured]] = {
            "mean": self.mean, "resample": self.resampled, "direct_effect": self.direct,
            "norm": lambda: norm.measured(asked), "gates": self.gated,
        }  # fmt: skip
        return [own[first]()]

    def removed(self, names: list[str]) -> list[Measured]:
        """Zero ablation, by its metric and by what it changes in the prediction."""
        asked, changes = self.asked, [name for name in names if name in change.METHODS]
        metrics: dict[str, Metric] = dict(change.metrics(asked, changes)) if changes else {}
        if "zero" in names:
            metrics["zero"] = asked.judged("zero")
        found = self.swept("zero", metrics)
        made = []
        for name in names:
            gained = name in change.METHODS and name not in change.LOST
            values = found[name].values if gained else _lost(found[name])
            made.append(self.exact(name, values, found[name], order=change.ORDER.get(name, "abs")))
        return made

    def mean(self) -> Measured:
        found = self.swept("mean", {"mean": self.asked.judged("mean")})["mean"]
        return self.exact("mean", _lost(found), found)

    def resampled(self) -> Measured:
        metric = self.asked.judged("resample")
        tapes = resample.tapes(self.asked, self.draws, self.seed)
        found = [self.swept(tape, {"resample": metric})["resample"] for tape in tapes]
        each = torch.stack([_lost(one) for one in found])
        made = self.exact("resample", each.mean(0), found[0], draws=self.draws)
        return Measured(**{**vars(made), "seeds": each.mean(2) if self.draws > 1 else None})

    def swept(self, source: Any, metrics: dict[str, Metric]) -> dict[str, Effects]:
        asked = self.asked
        found: dict[str, Effects] = patch(
            asked.model, base=asked.x, source=source, metric=metrics, sites=asked.spelled, seed=self.seed
        )
        return found

    def exact(self, name: str, values: Tensor, one: Effects, *, order: Any = "abs", draws: int = 1) -> Measured:
        notes = {"noise_floor": one.noise_floor, "engine": one.meta["engine"]}
        return Measured(name, values, order=order, passes=draws * _sweep_passes(self.asked), notes=notes)

    def attributed(self, method: str) -> Measured:
        """What the metric would lose; magnitudes where the method gives no sign."""
        asked = self.asked
        source = "zero" if asked.y is None else asked.y
        found = attribute(
            asked.model, base=asked.x, source=source, metric=asked.judged(method), sites=asked.spelled,
            method=method, verify=self.verify, seed=self.seed,
        )  # fmt: skip
        values = found.values.double() if method == "atp*" else _lost(found)
        notes = {name: found.meta[name] for name in ("corruption", "verify") if name in found.meta}
        return Measured(method, values, order="abs", passes=float(found.meta["passes"]), notes=notes)

    def direct(self) -> Measured:
        asked = self.asked
        towers = {site.tower for site in asked.sites}
        if len(towers) > 1:
            raise InputsError("by='direct_effect' is of the tower that answers; name heads= of that tower alone.")
        found = direct_effect(asked.model, asked.x, metric=asked.judged("direct_effect"), tower=towers.pop())
        rows = dict(zip(found.sites, found.values, strict=True))
        values = torch.stack([rows[f"{name}.result"] for name in asked.names]).double()
        return Measured("direct_effect", values, order="abs", passes=3.0)

    def gated(self) -> Measured:
        """Openness per head and seed."""
        from interp.heads.gates import gates

        asked = self.asked
        if len(asked.patterns) > 1:
            raise InputsError("by='gates' trains the gates of one pattern: give heads= as one, such as 'L*.H*'.")
        how: dict[str, Any] = {"heads": asked.patterns[0], "seed": self.seed}
        if asked.metric is not None and not isinstance(asked.data, Task):
            how["loss"] = _cost(asked.metric)
        found = gates(asked.model, asked.data, **{**how, **self.gates})
        at = [found.sites.index(name) for name in asked.names]
        values = found.openness[at].double().cpu()
        passes = 2.0 * int(found.meta["steps"]) * len(found.meta["seeds"])
        return Measured("gates", values, unit="seed", seeds=values.T.clone(), passes=passes, notes=_said(found.meta))


def _cost(metric: Metric) -> Any:
    """A metric as a loss; the shipped ones are turned around by the gates."""
    return metric if isinstance(metric, Reading) else lambda logits, inputs: -metric(logits, inputs)


def _said(meta: Any) -> dict[str, Any]:
    return {name: meta[name] for name in ("kind", "penalty", "steps", "seeds", "loss") if name in meta}


def _lost(found: Effects) -> Tensor:
    return 0.0 - found.values.double()


def _sweep_passes(asked: Asked) -> float:
    """Base, source and three checks, and for each head the layers from its own on."""
    total = 5.0
    for site in asked.sites:
        layers = sorted(asked.model.anatomy.tower(site.tower, text=str(site)).by_index)
        total += (len(layers) - layers.index(int(site.layer or 0))) / len(layers)
    return total
