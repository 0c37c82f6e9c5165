"""Where the values of a patch come from: another run, a tape, zeros, a mean, or noise; in the base's shape by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.hooks.drive.sweep import Sweep
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import Tape, real_positions, site_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.output import answer_of
from interp.metrics.judge import ALIGN, must_line_up
from interp.patching.alignment import How, Reduce, check, taken, weights

if TYPE_CHECKING:
    from interp.model import Model

PATTERN = "pattern"


@dataclass(frozen=True, eq=False)
class Average:
    """The mean over a dataset's real positions, or position by position over rows that are all as long as the base."""

    data: Any = field(repr=False)
    """The inputs of the dataset; a list is run in batches, anything else in one pass."""
    by_position: bool = False
    """Whether each position has a mean of its own; then all rows are as long as the base."""
    batch: int = 16
    """How many examples of a list are run at a time."""


@dataclass(frozen=True)
class Noise:
    """The base's own values plus Gaussian noise of `scale` standard deviations, which are those of the model's token
    embeddings at the embedding (Meng et al. 2022, arXiv 2202.05262) and of the base's values elsewhere."""

    scale: float = 3.0
    """The size of the noise, in standard deviations."""
    seed: int = 0
    """The seed of the noise."""


Source = Any | Literal["zero", "mean", "noise"] | Average | Noise | Tape


@dataclass(frozen=True, eq=False)
class Given:
    """The source's values by site, in the base's shape; where they come from a run, its inputs and logits as well."""

    values: Mapping[Site, Tensor]
    kind: str
    aligned: Mapping[Site, Tensor] = field(default_factory=dict)
    """[prompt, position] that has a partner in the source, where the two do not line up token by token."""
    inputs: Inputs | None = None
    logits: Tensor | None = None


class Sources:
    """Makes a source's values for one sweep's base."""

    def __init__(self, model: Model, sweep: Sweep, old: Mapping[Site, Tensor]) -> None:
        self.model, self.sweep, self.old = model, sweep, old
        self._means: dict[Site, Tensor] | None = None

    def given(
        self,
        source: Source,
        *,
        kept: Tensor | None = None,
        align: How | None = None,
        reduce: Reduce | None = None,
        source_model: Model | None = None,
    ) -> Given:
        """The source's values; `kept` are the columns whose logits a run is asked for."""
        check(align, reduce)
        if isinstance(source, (Average, Noise)) or (isinstance(source, str) and source in ("zero", "mean", "noise")):
            if align is not None or source_model is not None:
                raise InputsError(f"align= and source_model= are for sources that are runs, not for {source!r}.")
            return Given({site: self._made(source, site) for site in self._allowed(source)}, _kind(source))
        if isinstance(source, Tape):
            return self._from_tape(source, align, reduce)
        return self._from_run(self.model.inputs(source), kept, align, reduce, source_model)

    def _allowed(self, source: Source) -> list[Site]:
        if any(site.component == PATTERN for site in self.old):
            raise SiteError(f"a pattern is patched with another run's pattern, not with {_kind(source)}.")
        return list(self.old)

    def _made(self, source: Source, site: Site) -> Tensor:
        value = self.old[site]
        if source == "zero":
            return torch.zeros_like(value)
        if source == "noise" or isinstance(source, Noise):
            return self._noisy(Noise() if isinstance(source, str) else source, site)
        if isinstance(source, Average):
            return self._average(source)[site]
        return value[self._real(site, value)].mean(0).expand(value.shape).clone()

    def _real(self, site: Site, value: Tensor) -> Tensor:
        return real_positions(self.model.anatomy, self.sweep.base, site, value.shape[:2]).to(value.device)

    def _noisy(self, noise: Noise, site: Site) -> Tensor:
        value = self.old[site]
        first = min(self.model.anatomy.tower(site.tower, text=str(site)).by_index)
        embeddings: Any = getattr(self.model.module, "get_input_embeddings", lambda: None)
        table = getattr(embeddings(), "weight", None)
        embeds = site.component == "embed" or (site.component == "resid_pre" and site.layer == first)
        spread = table if embeds and table is not None else value[self._real(site, value)]
        random = torch.Generator().manual_seed(noise.seed)
        draw = torch.randn(value.shape, generator=random, dtype=torch.float32).to(value)
        return value + noise.scale * spread.detach().double().std().to(value) * draw

    def _average(self, mean: Average) -> dict[Site, Tensor]:
        if self._means is None:
            self._means = self._averaged(mean)
        return self._means

    def _averaged(self, mean: Average) -> dict[Site, Tensor]:
        total: dict[Site, Tensor] = {}
        count: dict[Site, Tensor] = {}
        for tape in self._tapes(mean):
            assert tape.inputs is not None
            for site, value in self.old.items():
                seen = tape[site].double()
                valid = real_positions(self.model.anatomy, tape.inputs, site, seen.shape[:2]).to(seen.device)
                part, n = _sums(seen, valid, by_position=mean.by_position)
                if mean.by_position and part.shape[0] != value.shape[1]:
                    raise InputsError(
                        f"a mean by position needs rows as long as the base's {value.shape[1]}, got {part.shape[0]}."
                    )
                total[site], count[site] = total.get(site, 0.0) + part, count.get(site, 0) + n
        if not total:
            raise InputsError("the mean's dataset is empty.")
        found = {}
        for site, value in self.old.items():
            n = count[site].clamp(min=1).view(-1, *[1] * (value.ndim - 2)) if mean.by_position else count[site]
            found[site] = (total[site] / n).to(value.dtype).expand(value.shape).clone()
        return found

    def _tapes(self, mean: Average) -> Any:
        wanted = list(self.old)
        if isinstance(mean.data, (list, tuple)):
            return self.model.stream(mean.data, record=wanted, batch=mean.batch)
        return [self.model.run(mean.data, record=wanted)]

    def _from_tape(self, tape: Tape, align: How | None, reduce: Reduce | None) -> Given:
        values = {site: tape[site] for site in self.old}
        if tape.inputs is None and align is not None:
            raise InputsError("this tape does not know its inputs, so nothing can be aligned with them.")
        full = self._answer_on(tape)
        return self._fitted(values, tape.inputs, full, "run", align, reduce)

    def _answer_on(self, tape: Tape) -> Tensor | None:
        """What the metric reads of a recorded run: its logits, or the place that it names, where the tape holds it."""
        answer = answer_of(self.model.module)
        wanted = Site(None, None, "logits") if answer is None else answer.site
        return tape[wanted] if wanted is not None and wanted in tape.sites else None

    def _from_run(
        self, y: Inputs, kept: Tensor | None, align: How | None, reduce: Reduce | None, source_model: Model | None
    ) -> Given:
        if align is None:
            self._lined_up(y)
        owner = self.model if source_model is None else self.model._source(source_model)
        other = Sweep(
            owner.module, owner.anatomy, y, owner.called_with(y.kwargs), family=owner.family, product=self.sweep.product
        )
        values, logits = self.sweep.observe(y, other.kwargs, list(self.old), kept, other=other)
        return self._fitted(values, y, logits, "run", align, reduce)

    def _lined_up(self, y: Inputs) -> None:
        x = self.sweep.base
        must_line_up(x, y, instead=ALIGN)
        mine, theirs = (z.roles.image.amax(1) + 1 for z in (x, y))
        if not torch.equal(mine.clamp(min=0), theirs.clamp(min=0)):
            raise InputsError(
                f"base has {mine.tolist()} images by row and source {theirs.tolist()}: pairs need equally many."
            )

    def _fitted(
        self,
        values: Mapping[Site, Tensor],
        y: Inputs | None,
        logits: Tensor | None,
        kind: str,
        align: How | None,
        reduce: Reduce | None,
    ) -> Given:
        if align is None:
            self._same_shape(values)
            return Given(values, kind, inputs=y, logits=logits)
        assert y is not None
        fitted, aligned = {}, {}
        for site, value in values.items():
            if site.component == PATTERN:
                raise SiteError(f"{site}: patterns of runs that do not line up have no common keys.")
            mine, theirs = (site_inputs(self.model.anatomy, x, site) for x in (self.sweep.base, y))
            share = weights(align, mine, theirs, reduce)
            fitted[site] = taken(share, value, like=self.old[site])
            aligned[site] = share.any(-1)
        return Given(fitted, kind, aligned, y, logits)

    def _same_shape(self, values: Mapping[Site, Tensor]) -> None:
        for site, value in values.items():
            if value.shape != self.old[site].shape:
                raise InputsError(
                    f"{site} is {list(self.old[site].shape)} in the base and {list(value.shape)} in the source: they"
                    " need to line up."
                )


def _kind(source: Source) -> str:
    if isinstance(source, Average):
        return "mean of a dataset by position" if source.by_position else "mean of a dataset"
    return repr(source) if isinstance(source, Noise) else str(source)


def _sums(value: Tensor, valid: Tensor, *, by_position: bool) -> tuple[Tensor, Tensor]:
    """Sums over real positions, and how many: over all of them, or per position."""
    if by_position:
        real = valid.view(*valid.shape, *[1] * (value.ndim - 2))
        return torch.where(real, value, 0.0).sum(0), valid.sum(0)
    return value[valid].sum(0), valid.sum()


__all__: Sequence[str] = ["Average", "Given", "Noise", "Source", "Sources"]
