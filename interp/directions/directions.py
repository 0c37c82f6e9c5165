"""Directions and subspaces of a site: found from data, put in, taken out, exchanged, and compared with random ones.

`mean_difference` is the direction between two sets of inputs (Marks and Tegmark 2023, arXiv 2310.06824, and many
before); steering is `interp.Add(site, direction)`, taking out `interp.edits.Project(site, direction)`. `exchange`
patches only the part inside a subspace, or only the part outside of it: `x' = x + P (source - x)` or `x + (1 -
P)(source
- x)`, with P the projector on the columns of any matrix, such as probe directions or columns of a dictionary's decoder.
`random_like` and `random_bases` are the controls. Cost: one recorded pass per set for a direction; two recorded passes
for an exchange, four more, and one per control. Limits: a subspace that matters for the answer need not be the one the
model reads (Makelov et al. 2023, arXiv 2311.17030); effects inside and outside do not add up to the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.directions.vectors import as_columns, random_bases, rows, single
from interp.hooks.edits.edits import Project, Set, ValueEdit
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Positions
from interp.metrics.judge import Judge, Metric, lined_up, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

__all__ = ["Exchange", "exchange", "mean_difference", "random_bases", "random_like"]


@dataclass(frozen=True, eq=False)
class Exchange(Told):
    """Effects `metric(patched) - metric(base)` of the source's values inside a subspace, outside it, everywhere, and
    inside random subspaces of the same rank."""

    site: str
    """The site whose values were exchanged."""
    rank: int
    """The number of dimensions of the subspace."""
    inside: Tensor
    """The effect of the part inside the subspace, per example."""
    outside: Tensor
    """The effect of the part outside the subspace, per example."""
    whole: Tensor
    """The effect of the whole value, per example."""
    random: Tensor
    """[control, example]: the effect of the part inside a random subspace of the same rank."""
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor
    """The metric of the source run, per example."""
    noise_floor: float
    """How far the metric moves when nothing is changed: a smaller effect is not an effect."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def exceeded(self) -> float:
        """The share of random subspaces whose mean effect is at least as large: (1 + those) / (1 + all)."""
        least = float(self.inside.mean().abs())
        return (1 + int((self.random.mean(1).abs() >= least).sum())) / (1 + len(self.random))

    def to_frame(self) -> Any:
        """Inside, outside, whole and the random subspaces, as mean effects and as shares of the whole."""
        import pandas

        means = {"inside": self.inside, "outside": self.outside, "whole": self.whole, "random": self.random}
        whole = float(self.whole.mean())
        return pandas.DataFrame(
            [{"part": name, "estimate": float(value.mean()), "share": float(value.mean()) / whole if whole else None}
             for name, value in means.items()]
        )  # fmt: skip

    def __repr__(self) -> str:
        parts = f"inside {float(self.inside.mean()):+.4g}, outside {float(self.outside.mean()):+.4g}"
        return f"Exchange of {self.rank} dimensions at {self.site}: {parts}, whole {float(self.whole.mean()):+.4g}"


def mean_difference(model: Model, toward: Any, away: Any, *, site: str, positions: Positions = "last") -> Tensor:
    """The mean at a site over one set of inputs minus that over another [d]; heads are taken one at a time."""
    return (_mean(model, toward, site, positions) - _mean(model, away, site, positions)).cpu()


def random_like(direction: Tensor, n: int = 100, *, seed: int = 0) -> Tensor:
    """`n` random directions of the same length [n, d]: the control of a direction."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, len(direction), generator=random, dtype=torch.float64)
    size = direction.double().norm().cpu()
    return (drawn / drawn.norm(dim=1, keepdim=True) * size).to(direction.dtype)


@hands_over
def exchange(
    model: Model,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    site: str,
    basis: Tensor,
    positions: Positions = "last",
    controls: int = 20,
    seed: int = 0,
) -> Exchange:
    """What the source's values do inside the span of the columns of `basis` [d, n], outside it, and all of them."""
    x, y = lined_up(model, base, source)
    one = single(model, site)
    old, new = model.run(x, record=one), model.run(y, record=one)
    value = new[one]
    columns = as_columns(basis, value.shape[-1], site)
    reads = reads_of(metric, x, old["logits"])
    judge = Judge(metric, x, classes=old["logits"].ndim == 2)
    plain = judge(reads.of(old["logits"])).double()

    def effect(edits: Sequence[ValueEdit]) -> Tensor:
        return (judge(reads.of(model.run(x, edits=edits)["logits"])).double() - plain).cpu()

    where: dict[str, Any] = {"positions": positions}
    put = Set(str(one), value, **where)
    bases = random_bases(value.shape[-1], columns.shape[1], controls, seed=seed)
    drawn = [effect([Project(str(one), control, value, **where)]) for control in bases]
    return Exchange(
        str(one), columns.shape[1],
        inside=effect([Project(str(one), columns, value, **where)]),
        outside=effect([put, Project(str(one), columns, old[one], **where)]),
        whole=effect([put]),
        random=torch.stack(drawn) if drawn else torch.empty(0, len(plain), dtype=torch.float64),
        base=plain.cpu(), source=judge(reads.of(new["logits"])).double().cpu(),
        noise_floor=float(effect([Set(str(one), old[one], **where)]).abs().max()),
        meta={**old.meta, "method": "subspace exchange", "metric": metric_name(metric), "seed": seed},
    )  # fmt: skip


def _mean(model: Model, inputs: Any, site: str, positions: Positions) -> Tensor:
    return rows(model, model.inputs(inputs), single(model, site), positions).double().mean(0).float()


register(
    Method(
        "interp.directions.exchange",
        number="effect on the metric of a subspace taken from the source, inside and outside of it",
        shown="bars",
        needs=("metric", "source"),
        passes=lambda t: 2 + 4 + 3,
        values="inside",
        example=lambda t: exchange(
            t.model, base=t.base, source=t.source, metric=t.metric, site=f"{t.tower}L1.H1.z", positions=t.reads,
            basis=torch.eye(t.width)[:, :1], controls=3,
        ),
    )
)  # fmt: skip
