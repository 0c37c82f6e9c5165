"""What a table of head importance is about: a model, the data it is measured on, how it is judged, and which heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import head_of
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import real_positions
from interp.hooks.sites import Site
from interp.metrics.ids import Ids
from interp.metrics.judge import Metric
from interp.metrics.reading import on
from interp.metrics.shipped import LogProb
from interp.patching.cells import expanded
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Asked:
    """One question to every measure."""

    model: Model
    x: Inputs
    y: Any
    """What heads are resampled from and attributed against; None where the data has no other side."""
    metric: Metric | None
    labels: Ids | None
    """The right answers' ids, a tuple a row."""
    forced: bool
    """The inputs end with the answer, which is scored token by token."""
    groups: tuple[str, ...]
    """What rows share beyond chance (their template); a row's own number where nothing is known."""
    sites: tuple[Site, ...]
    """One a head, of `z`."""
    patterns: tuple[str, ...]
    """What these were named by."""
    data: Any
    """As it was given, a task on this model."""

    @property
    def whole(self) -> list[Site]:
        """The sites with all their heads, each once."""
        return list(dict.fromkeys(site.whole for site in self.sites))

    @property
    def names(self) -> tuple[str, ...]:
        """The heads, as results call them: "L0.H1", "vision.L0.H1"."""
        return tuple(map(head_of, self.sites))

    @property
    def towers(self) -> tuple[str, ...]:
        """The tower of each head, by its own name."""
        return tuple(self.model.anatomy.tower(site.tower, text=str(site)).name for site in self.sites)

    @property
    def spelled(self) -> list[str]:
        """The sites as patterns."""
        return list(map(str, self.sites))

    def judged(self, method: str) -> Metric:
        """The metric, or why there is none."""
        if self.metric is None:
            raise InputsError(f"by={method!r} needs to know what is measured: give metric=, or an interp.Task as data.")
        return self.metric

    def answers(self, method: str) -> Ids:
        """The right answers, or why they are not known."""
        if self.labels is None:
            raise InputsError(f"by={method!r} needs the right answers: give labels=, or an interp.Task as data.")
        return self.labels

    def likelihood(self) -> Metric:
        """The log-probability of the right answer where it is known, else the metric."""
        if self.labels is None:
            return self.judged("fisher")
        return LogProb(self.labels if self.forced else tuple(row[:1] for row in self.labels), forced=self.forced)

    def real(self, site: Site, value: Tensor) -> Tensor:
        """[example, position], which positions of a recorded site [example, position, ...] are real."""
        if len(value) != self.x.batch:
            raise InputsError(
                f"{site} has {len(value)} rows for {self.x.batch} examples (images of their own, windows), so nothing"
                " can be said per example: give one image an example, or leave this tower out."
            )
        return real_positions(self.model.anatomy, self.x, site, value.shape[:2]).to(value.device)

    def by_head(self, found: dict[Site, Tensor]) -> Tensor:
        """[head, example] float64 from [example, head] of whole sites."""
        rows = []
        for site in self.sites:
            (head,) = site.heads or (0,)
            rows.append(found[site.whole][:, head].detach().double().cpu())
        return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a measure may want: the question, the data it is compared with, and how it is drawn and checked."""

    asked: Asked
    retain: Asked | None
    draws: int
    verify: Any
    gates: dict[str, Any]
    seed: int
    keep: Any = None
    """Where its sweeps are written down (`interp.heads.measures.kept.Keep`)."""


def asked(
    model: Model,
    data: Any,
    *,
    metric: Metric | None = None,
    labels: Sequence[int] | Tensor | None = None,
    source: Any = None,
    heads: str | Iterable[str] = "L*.H*",
) -> Asked:
    """Read the data: a task, or inputs with a metric or labels."""
    model.ready()
    metric = on(model, metric)
    patterns = (heads,) if isinstance(heads, str) else tuple(heads)
    chosen = tuple(_sites(model, patterns))
    if isinstance(data, Task):
        task = data if data.model is model else data.on(model)
        known = None if not all(task.answers) or task.score == "similarity" else task.answer_ids
        given = known if labels is None else _ids(labels, len(task))
        groups = tuple(str(one.get("template", n)) for n, one in enumerate(task.meta))
        y = task.corrupt if source is None else source
        return Asked(model, task.clean, y, metric or task.metric, given, task.whole, groups, chosen, patterns, task)
    x = model.inputs(data)
    given = None if labels is None else _ids(labels, x.batch)
    groups = tuple(map(str, range(x.batch)))
    return Asked(model, x, source, metric, given, False, groups, chosen, patterns, data)


def _sites(model: Model, patterns: Sequence[str]) -> list[Site]:
    spelled = [p if p.endswith(".z") else f"{p}.z" for p in patterns]
    found = expanded(model, spelled)
    wrong = next((site for site in found if site.heads is None), None)
    if wrong is not None:
        raise SiteError(f"{str(wrong)!r} names a layer; importance is per head: write 'L*.H*'.")
    if not found:
        raise SiteError("no heads were selected: name at least one, such as heads='L*.H*'.")
    return found


def _ids(labels: Sequence[int] | Tensor, rows: int) -> Ids:
    found = tuple((int(one),) for one in labels)
    if len(found) != rows:
        raise InputsError(f"labels are one a row: expected {rows}, got {len(found)}.")
    return found
