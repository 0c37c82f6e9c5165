"""What an attribution compares: a base, a source, sites and positions, and how contributions add up to cells.

Cells are those of `interp.patch`, in its order, so that estimates can be compared with exact effects. A contribution is
a number per row, position and head at a site; a cell is the sum of those it covers. Sums are float32 or better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.drive.blocks import called
from interp.hooks.drive.sweep import Sweep
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.size import free_memory
from interp.hooks.run.tape import Tape, tower_inputs
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import Dropped, Graph, graph
from interp.hooks.slopes.rules import Rules
from interp.hooks.stand.output import logits_of, no_logits
from interp.metrics.judge import ALIGN, Metric, judged, must_line_up
from interp.metrics.judges import columns_wanted
from interp.metrics.named import metric_name
from interp.metrics.reading import site_of
from interp.metrics.shipped import Reading
from interp.patching.alignment import Alignment, How, Reduce
from interp.patching.cells import expanded
from interp.patching.sources import Average, Given, Noise, Source, Sources

if TYPE_CHECKING:
    from interp.hooks.edits.edits import Edit
    from interp.model import Model

STEPS = 10
Contributions = Mapping[Site, Tensor]
"""[row, position] or [row, position, head] by whole site."""
FILLED = ("zero", "mean", "noise")
FLAT = 1e-6
"""Slopes of the metric by the logits that are rounding, not slopes."""


class FlatMetric(InputsError):
    """A metric whose gradient is 0 where it is taken."""


@dataclass(frozen=True)
class Setting:
    """What a caller may set of how the gradient is taken."""

    rules: tuple[str, ...] | None = None
    """Relevance rules in place of a method's own."""
    steps: int = STEPS
    """Of a path."""


@dataclass(eq=False)
class Pair:
    """A base run, and what is put into it."""

    model: Model
    base: Inputs
    source: Inputs | str
    """The other run, or what kind of values replaces it."""
    metric: Metric
    chosen: tuple[Site, ...]
    positions: Any
    new: Mapping[str, Tensor]
    """What the source has, by whole site."""
    passes: int = 0
    """Forward and backward passes so far, the source's included."""
    score: Tensor | None = None
    """The metric of the base run, per row."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a method has to say about how it ran; goes into the result."""
    align: How | None = None
    reduce: Reduce | None = None
    aligned: Mapping[Site, Tensor] = field(default_factory=dict)
    """[row, position] with a partner in the source, by whole site, where the two do not line up token by token."""
    other: Tensor | None = None
    """The metric of the source's own run, per row."""

    @property
    def whole(self) -> list[Site]:
        """The sites with all their heads, each once."""
        return list(dict.fromkeys(_recorded(site) for site in self.chosen))

    def kwargs(self) -> dict[str, Any]:
        return self.model.called_with(self.base.kwargs)

    def given(self, site: Site) -> Tensor:
        """The source's value at a whole site."""
        return self.new[str(site)]

    @cached_property
    def kept(self) -> Tensor | None:
        """The columns whose logits the metric reads, where the model can be asked for these alone: of many words the
        other logits would cost more than all blocks together."""
        return columns_wanted({"": self.metric}, self.base, self.model.module)

    def judged(self, logits: Tensor) -> Tensor:
        """The metric of a run's logits, per row."""
        return judged(self.metric, self.base, logits, self.kept)

    def seen(self, *, record: Sequence[Site], edits: Sequence[Edit] = ()) -> tuple[Mapping[Site, Tensor], Tensor]:
        """Values of the base run under edits, and the logits that are read."""
        self.passes += 1
        return observed(self.model, self.base, record, kept=self.kept, edits=edits)

    def run(
        self,
        *,
        sites: Sequence[Site] | None = None,
        edits: Sequence[Edit] = (),
        rules: Rules | None = None,
        dropped: Dropped | None = None,
        calls: Iterable[Site] = (),
        first_order: bool = True,
    ) -> Graph:
        """The base run with its graph. `first_order`: refuse a metric that is flat there."""
        found = graph(
            self.model.module, self.model.anatomy, self.base, self.kwargs(),
            sites=self.whole if sites is None else sites, score=self.judged, edits=edits, rules=rules, dropped=dropped,
            calls=calls, family=self.model.family, kept=self.kept,
        )  # fmt: skip
        self.passes += 2
        self.score = found.score.detach() if self.score is None and not edits else self.score
        if first_order:
            self._refuse_flat(found)
        return found

    def _refuse_flat(self, found: Graph) -> None:
        if found.steepness() > FLAT:
            return
        held = [name for name in ("reference", "target") if getattr(self.metric, name, None) is not None]
        why = f"its {held[0]} is this run" if held else "it is flat"
        what = "logits" if site_of(self.metric) is None else f"what it reads, {site_of(self.metric)!r},"
        raise FlatMetric(
            f"the metric {_short(self.metric)} does not change with {what} at the base run ({why}). A divergence has"
            " gradient 0 at its minimum, so a first-order method would give 0 for every cell. Use method='ig', which"
            " also takes gradients between base and source, or swap base and source, or use a logit difference."
        )

    def reverse(self) -> Pair | None:
        """The same pair the other way round; None where the source is no run, or its positions are others."""
        if not isinstance(self.source, Inputs):
            return None
        if self.align is not None and not isinstance(self.positions, str):
            return None
        how = Alignment(self.align.source, self.align.base) if isinstance(self.align, Alignment) else self.align
        return paired(
            self.model, self.source, self.base, self.metric, self.chosen, self.positions, align=how, reduce=self.reduce
        )  # the same sites, already expanded

    def change(self, found: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Source minus recorded values, float32 or better."""
        return {site: wide(self.given(site)) - wide(value) for site, value in found.items()}

    def cells(self, contributions: Contributions) -> Tensor:
        """[cell, row], float64 and on the CPU, in the order of `sites` and positions."""
        made: list[Tensor] = []
        for site in self.chosen:
            part = contributions[_recorded(site)].double().cpu()
            heads = self.model.anatomy.layer(site).heads_of(site) if site.heads is not None else None
            if heads is not None:
                part = part[:, :, list(heads)]
            part = part.flatten(2).sum(-1) if part.ndim > 2 else part
            made.extend((part * where).sum(1) for where in self.where(site, part.shape))
        return torch.stack(made)

    def where(self, site: Site, shape: Sequence[int]) -> list[Tensor]:
        """The position sets of a site's cells, [row, position] each."""
        every = self.aligned.get(_recorded(site), torch.ones(*shape[:2], dtype=torch.bool))
        if isinstance(self.positions, str) and self.positions == "each":
            return [every & (torch.arange(shape[1]) == p) for p in range(shape[1])]
        if isinstance(self.positions, str) and self.positions == "joint":
            return [every]
        return [every & tower_inputs(self.base, site).mask(self.positions).cpu()]

    def labels(self) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
        """Sites of the cells and the position axis, as `Effects` holds them."""
        if not (isinstance(self.positions, str) and self.positions == "each"):
            return tuple(map(str, self.chosen)), None
        length = self.given(_recorded(self.chosen[0])).shape[1]
        return tuple(str(site) for site in self.chosen for _ in range(length)), tuple(range(length))


def _recorded(site: Site) -> Site:
    """Where the numbers of a site come from: what a head writes is linear in its z, so z is used in place of
    `result`."""
    return replace(site.whole, component="z") if site.component == "result" else site.whole


def wide(x: Tensor) -> Tensor:
    """The numbers in float32 or better, without their graph."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def contributions(change: Mapping[Site, Tensor], slopes: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """<source - base, gradient> at every row, position and head."""
    return {site: (delta * wide(slopes[site]).to(delta)).sum(-1) for site, delta in change.items()}


def paired(
    model: Model,
    base: Any,
    source: Source,
    metric: Metric,
    sites: Iterable[str | Site],
    positions: Any,
    *,
    align: How | None = None,
    reduce: Reduce | None = None,
) -> Pair:
    """Read what was asked for, and run the source."""
    model.ready()
    x = model.inputs(base)
    chosen = chosen_sites(model, [sites] if isinstance(sites, (str, Site)) else list(sites))
    whole = list(dict.fromkeys(_recorded(site) for site in chosen))
    made = isinstance(source, (Average, Noise, Tape)) or (isinstance(source, str) and source in FILLED)
    if made or align is not None:
        given = _given(model, x, source, whole, metric, align=align, reduce=reduce)
        values = {str(site): value for site, value in given.values.items()}
        run = given.inputs if align is not None and not isinstance(source, Tape) else None
        return Pair(
            model, x, given.kind if run is None else run, metric, tuple(chosen), positions, values, passes=1,
            align=align, reduce=reduce, aligned=given.aligned, other=_score(metric, given),
        )  # fmt: skip
    y = model.inputs(source)
    must_line_up(x, y, instead=ALIGN)
    pair = Pair(model, x, y, metric, tuple(chosen), positions, {}, passes=1)
    seen, logits = observed(model, y, whole, kept=pair.kept)
    pair.new, pair.other = {str(site): value for site, value in seen.items()}, pair.judged(logits)
    return pair


def observed(
    model: Model, x: Inputs, sites: Sequence[Site], *, kept: Tensor | None = None, edits: Sequence[Edit] = ()
) -> tuple[Mapping[Site, Tensor], Tensor]:
    """Values of a run at sites, and its logits, of the `kept` columns where there are such."""
    wish = Wish(list(sites), budget=free_memory() // 2)
    session = Session(model.module, model.anatomy, edits=edits, wish=wish, inputs=x, family=model.family)
    with model.on(session), torch.no_grad():
        logits = logits_of(model.module(**called(model.module, model.called_with(x.kwargs), kept)))
    session.check_fired()
    if logits is None:
        raise no_logits(model.module)
    return session.recorded(), logits


def _score(metric: Metric, given: Given) -> Tensor | None:
    """The metric of an aligned source on its own inputs."""
    if given.inputs is None or given.logits is None or not given.aligned:
        return None
    return judged(metric, given.inputs, given.logits)


def chosen_sites(model: Model, spelled: Sequence[str | Site]) -> list[Site]:
    """The sites of `interp.patch` that have a gradient of their own: values per layer and position."""
    found = expanded(model, spelled)
    wrong = next((site for site in found if site.layer is None or site.component == "pattern"), None)
    if wrong is not None:
        raise SiteError(
            f"{str(wrong)!r}: attribution takes sites with values per layer and position, such as 'L*.H*.z' or"
            " 'L*.resid_pre' (which is the embedding at the first layer)."
        )
    if not found:
        raise SiteError("no sites were selected: name at least one, such as sites='L*.H*.z'.")
    return found


def _given(
    model: Model,
    x: Inputs,
    source: Source,
    whole: Sequence[Site],
    metric: Metric,
    *,
    align: How | None,
    reduce: Reduce | None,
) -> Given:
    """Zeros, means, noise, a tape, or a run that does not line up, as `interp.patch` makes them."""
    old, _ = observed(model, x, whole, kept=columns_wanted({"": metric}, x, model.module))
    sweep = Sweep(model.module, model.anatomy, x, model.called_with(x.kwargs), family=model.family)
    return Sources(model, sweep, old).given(source, align=align, reduce=reduce)


def _short(metric: Metric) -> str:
    return type(metric).__name__ if isinstance(metric, Reading) else metric_name(metric)
