"""Which heads replace one that is removed, and by how much: backup heads and self-repair.

Wang et al. 2022 (arXiv 2211.00593) find heads that write to the answer only once the name movers are knocked out;
McGrath et al. 2023 (arXiv 2307.15771) and Rushing and Nanda 2024 (arXiv 2402.15390) measure how much of a loss is made
up for. Some heads are removed (`how="zero"`, their z is 0; `"mean"`, its mean over rows and real positions), and the
direct effect of every other head, MLP and the norm is taken in the run as it is and in the run without them:

    takes over(c) = direct effect of c without the heads - with them
    repair        = (metric without - metric with) + direct effect of the heads with

so `repair` is the part of their direct effect that the model did not lose, and it is the sum of what all take over
together with what changes outside of parts (`bias`, `remainder`). Cost: three forward passes, two with every write
recorded. Limits: direct effects hold the final norm at each run's own scale, so its rescaling is in every part's number
and in no row of its own; a head that takes over may do so by way of others; zero is far from anything the model has
seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.edits.edits import Edit, Mean, Zero
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import head_of, is_head
from interp.metrics.judge import Metric
from interp.metrics.reading import hands_over
from interp.patching.direct_effect import direct_effect
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Backups(HeadResult):
    """`values` [part, example]: what each part's direct effect gains when the heads are gone."""

    STEM = "backups"
    TITLE = "takes over"

    parts: tuple[str, ...]
    """Heads, MLPs, the embedding, bias and remainder."""
    before: Tensor
    """[part, example]: direct effects in the whole model."""
    after: Tensor
    """[part, example]: direct effects without the removed heads."""
    removed: tuple[str, ...]
    """The heads that were removed."""
    effect: Tensor
    """Metric without the heads less that with them [example]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def values(self) -> Tensor:
        """[part, example]."""
        return self.after - self.before

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """The heads that are still there."""
        return tuple(head_of(self.parts[n]) for n in self._heads)

    @property
    def _heads(self) -> list[int]:
        return [n for n, p in enumerate(self.parts) if is_head(p) and head_of(p) not in self.removed]

    @property
    def lost(self) -> Tensor:
        """The heads' own direct effect, which went with them [example]."""
        gone = [n for n, p in enumerate(self.parts) if is_head(p) and head_of(p) in self.removed]
        return self.before[gone].sum(0)

    @property
    def repair(self) -> Tensor:
        """What of that the answer did not lose [example]."""
        return self.effect + self.lost

    def tables(self) -> list[HeadTable]:
        """What every remaining head takes over, with its direct effects."""
        kept = self._heads
        more = {"before": self.before[kept].mean(1), "after": self.after[kept].mean(1)}
        return [HeadTable(self.sites, self.values[kept], "takes over", more=more)]

    def __repr__(self) -> str:
        best = self.top(1).iloc[0]
        return (
            f"Backups of {', '.join(self.removed)}: direct effect {float(self.lost.mean()):+.3g}, the answer changes by"
            f" {float(self.effect.mean()):+.3g}; {best['site']} takes over {best['estimate']:+.3g}"
        )


@hands_over
def backups(model: Model, inputs: Any, heads: str | Sequence[str], *, metric: Metric, how: str = "zero") -> Backups:
    """What takes over when some heads ("L9.H9", or several) are gone."""
    x = model.inputs(inputs)
    removed = tuple(head_of(one) for one in ([heads] if isinstance(heads, str) else heads))
    edits = _edits(removed, how)
    before = direct_effect(model, x, metric=metric)
    known = {head_of(site) for site in before.sites if is_head(site)}
    if strange := [one for one in removed if one not in known]:
        raise SiteError(
            f"{strange[0]} does not write to the tower of the answer: name heads of that tower, such as {min(known)}."
        )
    with model.edited(edits):
        after = direct_effect(model, x, metric=metric)
    meta = {**before.meta, "method": "backups", "how": how}
    return Backups(before.sites, before.values, after.values, removed, after.base - before.base, meta)


def _edits(removed: Sequence[str], how: str) -> list[Edit]:
    if not removed or how not in ("zero", "mean"):
        raise InputsError(f"name at least one head, and how='zero' or 'mean'; got {list(removed)} and {how!r}.")
    edit = Zero if how == "zero" else Mean
    return [edit(f"{one}.z") for one in removed]


def _trial(t: Trial) -> Backups:
    return backups(t.model, t.base, t.names[0], metric=t.metric)


register(
    Method(
        "interp.heads.backups",
        number="gain of a head's direct effect on the metric when other heads are gone",
        shown="map",
        needs=("metric",),
        made_of=("interp.patching.direct_effect",),
        passes=lambda t: 2 * (4 + t.layers),
        example=_trial,
    )
)
