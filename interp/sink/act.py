"""Heads that do better with less weight on their sinks: ACT's filter on one part of a task, judged on another.

Yu et al., ICML 2024 (arXiv 2406.15765): many heads rest on tokens after the first that say little. For every head
alone, the weight on such sinks is cut and given to the other tokens (`Calibrate`); heads where the metric gains are
kept, and all of them are calibrated together. The paper's code holds the lists it found and not the rule; here a head
is kept where its mean gain is above 0, or with `sure=True` where the whole interval is. What the kept heads do is
judged on the held-out part, and compared with equally many random heads that have sinks, and with all of them. Cost: a
forward pass with statistics, one a head that has sinks (the others cannot change anything), and draws + 3 on the
held-out part. Limits: a gain above 0 of one head is found by chance in half of those that do nothing, which is why the
held-out figure counts; calibration is of the prompt. Layers can be left out by `heads` (the paper takes neither the
first two nor the last).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.edits.calibrate import Calibrate, resting
from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, heads_at, spelled_together
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.metrics.edited import EditedScores
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.results.intervals import mean_interval
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Act(HeadResult):
    """What calibrating each head does to the metric, which heads are kept, and what these do on other data."""

    STEM, TITLE = "act", "gain"

    sites: tuple[str, ...]
    effects: Tensor
    """[head, example] where heads were chosen: metric(calibrated) - metric(base); exactly 0 without sinks."""
    sinks: Tensor
    """[head]: sinks per example."""
    kept: Tensor
    """Bool [head]: whether the head is kept, because the metric gains when it is calibrated."""
    edits: tuple[Calibrate, ...]
    """The kept heads' calibration, for `m.run(x, edits=a.edits)` or `m.edited(a.edits)`."""
    before: Tensor
    """[example] held out: the metric of the model as it is."""
    after: Tensor
    """The same with the kept heads calibrated."""
    random: Tensor
    """[draw, example], equally many random heads that have sinks."""
    every: Tensor
    """The same with all heads that have sinks."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Held out: what the kept heads add to the metric."""
        return float((self.after - self.before).mean())

    def tables(self) -> tuple[HeadTable, ...]:
        """The gain of each head where heads were chosen, its sinks, and whether it is kept."""
        return (HeadTable(self.sites, self.effects, "act", more={"sinks": self.sinks, "kept": self.kept}),)

    def judged(self) -> Any:
        """Held out, one row each: gains of the kept heads, of random ones and of all that have sinks, with interval."""
        import pandas

        sides = {"kept": self.after, "random": self.random.mean(0), "every": self.every}
        gains = torch.stack([side - self.before for side in sides.values()])
        low, high = mean_interval(gains)
        return pandas.DataFrame(
            {"heads": list(sides), "estimate": gains.mean(1), "low": low, "high": high, "n": len(self.before)}
        )

    def facts(self) -> dict[str, Any]:
        """Without the edits, which are said by what is kept and how."""
        return {name: value for name, value in super().facts().items() if name != "edits"}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Act:
        """With the kept heads' edits."""
        some = [site for site, kept in zip(facts["sites"], tensors["kept"].tolist(), strict=True) if kept]
        return super().restored({**facts, "edits": _edits(some, **facts["meta"]["calibrate"])}, tensors)

    def __repr__(self) -> str:
        return (
            f"Act: {int(self.kept.sum())} of {len(self.sites)} heads kept; on {len(self.before)} held-out examples the"
            f" metric goes from {float(self.before.mean()):.4g} to {float(self.after.mean()):.4g} (random heads"
            f" {float(self.random.mean()):.4g}, all {float(self.every.mean()):.4g})"
        )


def act(
    model: Model,
    task: Any,
    *,
    heldout: Any = None,
    heads: str = "L*",
    threshold: float = 0.1,
    keep: float = 0.4,
    least: int = 1,
    sure: bool = False,
    draws: int = 20,
    seed: int = 0,
) -> Act:
    """Choose heads on `task` and judge them on `heldout` (`task.heldout` unless given); `threshold`, `keep` and `least`
    are those of `interp.edits.Calibrate`."""
    if draws < 1:
        raise InputsError(f"draws= is how many sets of random heads are compared with, at least 1; got {draws}.")
    how = {"threshold": threshold, "keep": keep, "least": least}
    found = _fitting(model, task)
    judged = _fitting(model, found.heldout if heldout is None else heldout)
    sites, counts = _sinks(model, found.clean, heads, threshold, least)
    if not bool(counts.any()):
        raise InputsError(
            f"no head gives more than threshold={threshold} to any token after the first, so no head can be"
            " calibrated: give a smaller threshold=."
        )
    scores = EditedScores(model, found.clean, found.metric)
    still = torch.zeros_like(scores.base)
    effects = torch.stack(
        [
            scores(_edits([site], **how)) - scores.base if count else still
            for site, count in zip(sites, counts.tolist(), strict=True)
        ]
    )
    kept = (mean_interval(effects)[0] if sure else effects.mean(1)) > 0
    able = [site for site, count in zip(sites, counts.tolist(), strict=True) if count]
    chosen = [site for site, here in zip(sites, kept.tolist(), strict=True) if here]
    others = EditedScores(model, judged.clean, judged.metric)
    sets = _random(able, len(chosen), draws, seed)
    return Act(
        sites=sites, effects=effects, sinks=counts, kept=kept, edits=_edits(chosen, **how), before=others.base,
        after=others(_edits(chosen, **how)), random=torch.stack([others(_edits(some, **how)) for some in sets]),
        every=others(_edits(able, **how)),
        meta={**about(model.module, found.clean), "method": "act", "task": found.name,
              "metric": metric_name(found.metric), "heldout_hash": judged.clean.digest(),
              "calibrate": how, "sure": sure, "seed": seed},
    )  # fmt: skip


def _fitting(model: Model, task: Any) -> Task:
    if not isinstance(task, Task):
        raise InputsError(f"expected a task, such as interp.tasks.ioi(m), got {type(task).__name__}.")
    return task if task.model is model else task.on(model)


def _sinks(model: Model, x: Inputs, heads: str, threshold: float, least: int) -> tuple[tuple[str, ...], Tensor]:
    """Heads by name, and how many sinks each has per example."""
    found = model.attention(x, stats=["received", "seen"], heads=heads)
    names: list[str] = []
    counts: list[Tensor] = []
    for site, values in found.values.items():
        first = tower_inputs(x, Site(site.tower, site.layer, "k")).valid.int().argmax(1)
        rests = resting(values["received"], values["seen"], first, threshold=threshold, least=least)
        counts.append(rests.double().sum(-1).mean(0).cpu())
        names += heads_at(site, found.heads[site])
    return tuple(names), torch.cat(counts)


def _edits(heads: Iterable[str], **how: Any) -> tuple[Calibrate, ...]:
    """One calibration a layer."""
    return tuple(Calibrate(spelled_together(*some), **how) for some in by_layer(heads).items())


def _random(able: list[str], count: int, draws: int, seed: int) -> list[list[str]]:
    """Sets of heads in the model's own order."""
    random = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(len(able), generator=random)[:count].sort().values.tolist() for _ in range(draws)]
    return [[able[n] for n in some] for some in picks]


register(
    Method(
        "interp.sink.act",
        number="effect on the metric of a head with less weight on its sinks, calibrated minus base",
        shown="bars",
        needs=("task",),
        unfit={"encoder-decoder": "a task needs the model's tokenizer"},
        passes=lambda t: 1 + t.count + 2 + 3,
        values="effects",
        example=lambda t: act(t.model, t.task, heldout=t.task, heads=f"{t.tower}L*", threshold=0.05, draws=2),
    )
)
