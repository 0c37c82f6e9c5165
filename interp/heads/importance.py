"""Which heads matter: removal, gradients, attribution and what is seen from outside, side by side, with intervals.

Each measure is a number per head and example; the estimate is its mean, the interval a bootstrap over examples (over
templates, then prompts, where a task names them), and `.agreement()` says how far the measures rank heads alike: seldom
far, which is the reason to look at more than one. `by` names measures or groups of them:

    ablation      zero, mean, resample: what the metric loses without the head, by exact patching. Mean: over the real
                  positions of this data; resample: a random other row's values, `draws` times
    gradient      also gradient-l2, gradient-token, gradient-signed (Michel et al. 2019;
    `interp/heads/measures/gradient.py`) attribution   relp; also atp, atp*, ig and the others of `interp.attribute`:
    what the metric would lose with the
                  source in the head's place (a task's corrupt prompts, else zeros), compared with exact patching
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
Limits: single heads, so a head that another one can replace has a small number in every measure but the gates; numbers
hold for this data, metric and ablation. Rankings of many heads are not tests of any one: see `.ranks()`. LXT's authors
state that LRP (relp, attnlrp, cp-lrp) is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from interp.attribution.attribute import methods
from interp.cells.shards import Asked as Cut
from interp.cells.shards import ShardDone, framed, mark, part, refuse_shard
from interp.cells.shards import asked as cut
from interp.heads.measures import change, resample
from interp.heads.measures.asked import Asked, Run, asked
from interp.heads.measures.kept import Keep, bare, drawn, lost, noted
from interp.heads.measures.measured import Measured, Order
from interp.heads.measures.table import Importance
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.places import At
from interp.metrics.reading import site_of
from interp.metrics.shipped import Reading
from interp.patching.direct_effect import direct_effect
from interp.provenance import about, refuse_unwritten
from interp.records import Method, Passes, Variant, register, variants
from interp.results.effects import Effects
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

GROUPS = {"ablation": ("zero", "mean", "resample"), "attribution": ("relp",), "vit": change.METHODS}


def measures() -> dict[str, Variant]:
    """Every measure by name: those registered in this room, and each way of attribution."""
    estimates = {name: replace(one, run=attributed, how={}) for name, one in methods().items()}
    return {**variants("interp.importance", room="heads"), **estimates}


@overload
def importance(model: Model, data: Any, *, shard: None = None, **how: Any) -> Importance: ...
@overload
def importance(model: Model, data: Any, *, shard: tuple[int, int] | str, **how: Any) -> ShardDone: ...


@torch.enable_grad()  # type: ignore[misc]  # the overloads leave the rest to this
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
    out: str | Path | None = None,
    shard: Cut = None,
    engine: Any = None,
) -> Importance | ShardDone:
    """Every head's importance on a task, or on inputs with a `metric` (higher is more of the behaviour studied).

    `labels` are the right answers' ids or classes where data is no task. `heads` are site patterns of any towers
    (["text.L*.H*", "vision.L*.H*"]). `source` is another side to resample from and attribute against; `retain` a second
    data set for fisher; `draws` how often resampling is drawn; `verify` as in `interp.attribute`; `gates` the arguments
    of `interp.heads.gates`. `out=` is a directory for the sweeps: if the call is killed, make it again to continue.
    `shard=(0, 4)` computes the first of four parts of their cells, in its own directory, and `interp.scale.merge` makes
    the table of all four; every shard computes the measures that are no sweeps (gradients, fisher, entropy, norm,
    direct effects, gates). `engine` says what computes the cells (`interp/cells/work.py`).
    """
    mine = cut(shard, out)
    chosen = _methods(by)
    if draws < 1:
        raise InputsError(f"draws= is how often heads are resampled, at least 1; got {draws}.")
    start = time.perf_counter()
    question = asked(model, data, metric=metric, labels=labels, source=source, heads=heads)
    kept = None if retain is None else asked(model, retain, metric=metric, heads=heads)
    if out is not None:
        refuse_unwritten(model.module)
        refuse_shard(out) if mine is None else mark(out, "interp.importance", mine)
    keep = Keep(None if out is None else Path(out), mine, engine)
    run, known = Run(question, kept, draws, verify, dict(gates or {}), seed, keep), measures()
    found = {one.method: one for group in _shared(chosen, known) for one in known[group[0]].run(run, group)}
    made = tuple(found[name] for name in chosen)
    classes = () if question.labels is None else tuple(str(row[0]) for row in question.labels)
    meta = {
        **about(model.module, question.x), "metric": metric_name(question.metric), "seed": seed, "draws": draws,
        "passes": {one.method: one.passes for one in made},
        "notes": {one.method: dict(one.notes) for one in made if one.notes},
    }  # fmt: skip
    if out is None:  # what is written down holds no time of its own: see run.json of the sweeps
        meta["seconds"] = round(time.perf_counter() - start, 3)
    table = Importance(question.names, question.towers, made, question.groups, classes, meta, seed)
    if mine is not None and out is not None:
        framed(out, bare(table))
        return part(out, "interp.importance", mine)
    if out is not None:
        table.save(out)
    return table


def _methods(by: str | Iterable[str]) -> list[str]:
    if not isinstance(by, Iterable):
        raise InputsError(f"by= is a measure or a list of measures, got {by!r}.")
    asked_for = [by] if isinstance(by, str) else list(by)
    found = list(dict.fromkeys(name for one in asked_for for name in GROUPS.get(one, (one,))))
    known = measures()
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        there = ", ".join((*GROUPS, *known))
        raise InputsError(f"no measure {unknown[0]!r}; there are {there}." if unknown else f"by= is empty: {there}.")
    return found


def _shared(chosen: list[str], known: Mapping[str, Variant]) -> list[list[str]]:
    """The measures in groups that read the same run and are taken together."""
    found: dict[str, list[str]] = {}
    for name in chosen:
        found.setdefault(known[name].how.get("shares", name), []).append(name)
    return list(found.values())


def removed(run: Run, names: list[str]) -> list[Measured]:
    """Zero ablation, by its metric and by what it changes in the prediction."""
    asked, changes = run.asked, [name for name in names if name in change.METHODS]
    metrics: dict[str, Metric] = dict(change.metrics(asked, changes)) if changes else {}
    if "zero" in names:
        metrics["zero"] = asked.judged("zero")
    found = _swept(run, "zero", "zero", metrics)
    made = []
    for name in names:
        gained = name in change.METHODS and name not in change.LOST
        values = found[name].values if gained else lost(found[name])
        one = _exact(asked, name, values, found[name], order=change.ORDER.get(name, "abs"))
        made.append(_said_of(run, one, "gained" if gained else "lost", name, ["zero"]))
    return made


def averaged(run: Run, names: list[str]) -> list[Measured]:
    """Ablation by the mean over this data."""
    found = _swept(run, "mean", "mean", {"mean": run.asked.judged("mean")})["mean"]
    return [_said_of(run, _exact(run.asked, "mean", lost(found), found), "lost", "mean", ["mean"])]


def resampled(run: Run, names: list[str]) -> list[Measured]:
    """Ablation by another row's values."""
    metric = run.asked.judged("resample")
    places = [f"resample{n}" for n in range(run.draws)]
    tapes = resample.tapes(run.asked, run.draws, run.seed)
    found = [
        _swept(run, place, tape, {"resample": metric})["resample"] for place, tape in zip(places, tapes, strict=True)
    ]
    values, seeds = drawn(found)
    made = replace(_exact(run.asked, "resample", values, found[0], draws=run.draws), seeds=seeds)
    return [_said_of(run, made, "drawn", "resample", places)]


def _swept(run: Run, place: str, source: Any, metrics: dict[str, Metric]) -> dict[str, Effects]:
    asked = run.asked
    keep: Keep = run.keep
    return keep.swept(place, asked.model, metrics, base=asked.x, source=source, sites=asked.spelled, seed=run.seed)


def _said_of(run: Run, one: Measured, kind: str, metric: str, places: list[str]) -> Measured:
    """A measure that says which sweeps it comes from, where these are written down."""
    return one if run.keep.out is None else noted(one, kind, metric, places)


def _exact(asked: Asked, name: str, values: Tensor, one: Effects, *, order: Order = "abs", draws: int = 1) -> Measured:
    notes = {"noise_floor": one.noise_floor, "engine": one.meta["engine"]}
    return Measured(name, values, order=order, passes=draws * _sweep_passes(asked), notes=notes)


def attributed(run: Run, names: list[str]) -> list[Measured]:
    """What the metric would lose by one way of attribution; magnitudes where that gives no sign."""
    asked, method = run.asked, names[0]
    source = "zero" if asked.y is None else asked.y
    found = run.keep.estimated(
        method, asked.model, base=asked.x, source=source, metric=asked.judged(method), sites=asked.spelled,
        method=method, verify=run.verify, seed=run.seed,
    )  # fmt: skip
    values = lost(found) if methods()[method].signed else found.values.double()
    notes = {name: found.meta[name] for name in ("corruption", "verify") if name in found.meta}
    made = Measured(method, values, order="abs", passes=float(found.meta["passes"]), notes=notes)
    return [made if run.verify == 0 else _said_of(run, made, "estimate", "", [method])]


def direct(run: Run, names: list[str]) -> list[Measured]:
    """What the head writes straight to the metric."""
    asked = run.asked
    towers = {site.tower for site in asked.sites}
    if len(towers) > 1:
        raise InputsError("by='direct_effect' is of the tower that answers; name heads= of that tower alone.")
    found = direct_effect(asked.model, asked.x, metric=asked.judged("direct_effect"), tower=towers.pop())
    rows = dict(zip(found.sites, found.values, strict=True))
    values = torch.stack([rows[f"{name}.result"] for name in asked.names]).double()
    return [Measured("direct_effect", values, order="abs", passes=3.0)]


def gated(run: Run, names: list[str]) -> list[Measured]:
    """Openness of learned gates, per head and seed."""
    from interp.heads.gates import gates

    asked = run.asked
    if len(asked.patterns) > 1:
        raise InputsError("by='gates' trains the gates of one pattern: give heads= as one, such as 'L*.H*'.")
    how: dict[str, Any] = {"heads": asked.patterns[0], "seed": run.seed}
    if asked.metric is not None and not isinstance(asked.data, Task):
        how["loss"] = _cost(asked.metric)
    found = gates(asked.model, asked.data, **{**how, **run.gates})
    at = [found.sites.index(name) for name in asked.names]
    values = found.openness[at].double().cpu()
    passes = 2.0 * int(found.meta["steps"]) * len(found.meta["seeds"])
    return [Measured("gates", values, unit="seed", seeds=values.T.clone(), passes=passes, notes=_said(found.meta))]


def _cost(metric: Metric) -> Any:
    """A metric as a loss; the shipped ones are turned around by the gates."""
    if isinstance(metric, Reading):
        return metric
    site, cost = site_of(metric), lambda answer, inputs: -metric(answer, inputs)
    return cost if site is None else At(site, cost)


def _said(meta: Any) -> dict[str, Any]:
    return {name: meta[name] for name in ("kind", "penalty", "steps", "seeds", "loss") if name in meta}


def _sweep_passes(asked: Asked) -> float:
    """Base, source and three checks, and for each head the layers from its own on."""
    total = 5.0
    for site in asked.sites:
        layers = sorted(asked.model.anatomy.tower(site.tower, text=str(site)).by_index)
        total += (len(layers) - layers.index(site.layer)) / len(layers) if site.layer is not None else 1.0
    return total


register(
    Method(
        "interp.importance",
        number="how much a head matters, by each measure in its own unit; ranks are what measures share",
        shown="map",
        needs=("metric",),
        made_of=("interp.patch", "interp.attribute", "interp.patching.direct_effect", "interp.heads.gates"),
        passes=lambda t: 5 + t.sweep,
        values=None,
        example=lambda t, by="zero", **how: importance(
            t.model, t.base, by=by, metric=t.metric, **{"labels": t.labels, **how}, source=t.source, retain=t.source,
            heads=t.heads, draws=1, verify=0, gates={"steps": 2, "seeds": 2},
        ),
    )
)  # fmt: skip
_LOSES = "what the metric loses without the head, in its unit"
_MEASURES: tuple[tuple[str, str, Callable[[Run, list[str]], list[Measured]], str, int], ...] = (
    ("zero", f"{_LOSES}: zeros in its place", removed, "zero", 0),
    ("mean", f"{_LOSES}: its mean over the data in its place", averaged, "mean", 1),
    ("resample", f"{_LOSES}: another row's values in its place", resampled, "resample", 2),
    ("direct_effect", "what the head writes straight to the metric, in its unit", direct, "direct_effect", 34),
    ("prediction", "share of examples whose prediction changes without the head", removed, "zero", 50),
    ("probability", "probability that the right answer loses without the head", removed, "zero", 51),
    ("loss", "cross-entropy gained without the head, in nats", removed, "zero", 52),
    ("kl", "KL divergence of the prediction without the head, in nats", removed, "zero", 53),
    ("js", "Jensen-Shannon divergence of the prediction without the head, in nats", removed, "zero", 54),
    ("gates", "how far the head's gate stays open, 0 to 1", gated, "gates", 60),
)
_PASSES: dict[str, Passes] = {
    **dict.fromkeys(change.METHODS, lambda t: 6 + t.sweep), "resample": lambda t: 7 + t.sweep,
    "direct_effect": lambda t: 3, "gates": lambda t: 2 * 2 * 2,
}  # fmt: skip
for _name, _number, _measure, _shares, _order in _MEASURES:
    register(
        Variant(
            "interp.importance", _name, argument="by", number=_number, run=_measure, order=_order,
            how={"shares": _shares}, passes=_PASSES.get(_name),
        )
    )  # fmt: skip
