"""Where is what was forgotten? One model's activations put into the other, on the same input.

After the patching between a model and its unlearned copy in "Dissecting Fine-Tuning Unlearning" (arXiv 2410.06606);
the two shares below are our reading. With M the metric of the right answer, `before` the model that knew, `after` the
one that forgot, and `gap = M(before) - M(after)`, each a mean over examples:

    left    1 - (M(before) - M(before with the site of after)) / gap    what `before` still makes of it: 1 where all
            that the answer needs is in that site of the forgetful model, 0 where it says what that model says
    healed  (M(after with the site of before) - M(after)) / gap         what `after` says when it is given it: 1 where
            everything that went wrong passes through that site, 0 where none of it does

At residuals `left` falls from 1 to 0 along the layers: it falls where the forgetting is done, and where it is still 1,
what was forgotten is still there and later layers do not read it. At heads, what `left` lacks of 1 and `healed` say how
much of the forgetting is that head's own writing. Nothing is clipped. Intervals draw examples again, numerator and
denominator together. Cost: a recorded pass and the patches of each site (`interp/patching/patch.py`), in both models.
Limits: one site at a time, of models of one architecture; a head's z is read by the W_O of the model that it is put
into, so where output matrices differ ask `attn_out` too; a head that hides what another one adds looks guilty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import ModelError
from interp.hooks.head_names import columns_of, is_head, layer_number
from interp.hooks.sites import parse
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import reading
from interp.patching.cells import targets
from interp.patching.exact import Question
from interp.patching.swept import effects
from interp.provenance import about
from interp.pruning.cut import copied
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.plots import by_site
from interp.results.heads_table import largest
from interp.results.intervals import apart, interval, weights
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model

DRAWS = 1000
SMALL = 1e-6
"""A gap below it, of metrics of size 1, is none."""


@dataclass(frozen=True, eq=False)
class AcrossModels(Saved):
    """`values` [side, site, example], the metric with a patch: side 0 in the model that knew, side 1 in the other."""

    STEM = "across_models"

    sites: tuple[str, ...]
    """What is patched, heads one by one: "L3.resid_post", "L3.H1.z"."""
    values: Tensor
    """[side, site, example]: the metric with the patch; side 0 in the model that knew, side 1 in the other."""
    before: Tensor
    """[example]: the metric of the model that knew."""
    after: Tensor
    """[example]: of the one that forgot."""
    noise_floor: float
    """How far the metric moves when nothing is changed, the larger number of both models."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> Tensor:
        """[site]."""
        return self._shares(torch.ones(1, self.values.shape[2]).double() / self.values.shape[2])[0][0]

    @property
    def healed(self) -> Tensor:
        """[site]."""
        return self._shares(torch.ones(1, self.values.shape[2]).double() / self.values.shape[2])[1][0]

    def _shares(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Both shares [draw, site] for shares of examples [draw, example]."""
        after = drawn @ self.after
        gap = (drawn @ self.before - after)[:, None]
        left, healed = ((drawn @ side.T - after[:, None]) / gap for side in self.values)
        return left, healed

    def to_frame(self) -> Any:
        """One row per site: what is left and what heals, with intervals over examples; `estimate` is what is left."""
        import pandas

        count = self.values.shape[2]
        drawn = self._shares(weights(apart(count), draws=DRAWS, seed=0))
        ends = [interval(one, n=count) for one in drawn]
        heads = [int(str(parse(site).heads)) if is_head(site) else None for site in self.sites]
        return pandas.DataFrame(
            {"site": self.sites, **columns_of(map(layer_number, self.sites)), "head": heads,
             "component": [parse(site).component for site in self.sites], "method": "patch_across",
             "estimate": self.left, "low": ends[0][0], "high": ends[0][1],
             "healed": self.healed, "healed_low": ends[1][0], "healed_high": ends[1][1], "n": count}
        )  # fmt: skip

    def top(self, n: int = 10) -> Any:
        """The n sites that heal most."""
        return largest(self.to_frame(), n, column="healed", by="high")

    def _figure(self) -> Figure:
        """Both shares along the residuals, or by site where none was patched."""
        frame = self.to_frame()
        frame = frame[frame["head"].isna()] if bool(frame["head"].isna().any()) else frame
        lines = {"left": "estimate", "healed": "healed"}
        return by_site(frame, lines, y="share of the effect")

    def __repr__(self) -> str:
        best = int(self.healed.argmax())
        return (
            f"AcrossModels at {len(self.sites)} sites: the metric is {float(self.before.mean()):.3g} before and"
            f" {float(self.after.mean()):.3g} after; {self.sites[best]} heals {float(self.healed[best]):.0%}, and"
            f" {float(self.left[best]):.0%} is left there"
        )


def patch_across(
    model: Model,
    before: Model,
    data: Any,
    *,
    metric: Metric,
    sites: str | Iterable[str] = ("L*.resid_post", "L*.H*.z"),
    seed: int = 0,
) -> AcrossModels:
    """`model` is the one that forgot, `before` the one that knew; all positions of a site are patched together."""
    model.ready()
    before.ready()
    x = model.inputs(data)
    found = {}
    with reading(model, metric, before) as judge:
        for name, (host, guest) in {"before": (before, model), "after": (model, before)}.items():
            question = Question(host, targets(host, sites, (), 1, pairs=False), source_model=guest, seed=seed)
            found[name] = effects(question, x, x, {"": judge})[""]
    knew, forgot = (found[name].base.double() for name in ("before", "after"))
    gap = float((knew - forgot).mean())
    if not abs(gap) > SMALL * max(1.0, float(knew.abs().max())):
        raise ModelError(
            f"both models have the same metric ({float(knew.mean()):.6g}) on these examples: nothing was forgotten of"
            " them that could be looked for. Give the forget set, and as `before` the model that knew it."
        )
    values = torch.stack([found[name].values + base for name, base in (("before", knew), ("after", forgot))])
    meta = {**about(model.module, x), "method": "patch_across", "before": about(before.module, None)["model_hash"],
            "metric": metric_name(metric)}  # fmt: skip
    floor = max(one.noise_floor for one in found.values())
    return AcrossModels(found["after"].sites, finite(values, "patched metrics"), knew, forgot, floor, meta)


def _example(t: Any) -> AcrossModels:
    other = copied(t.model)
    with torch.no_grad():
        for p in other.module.parameters():
            p.mul_(0.9)
    return patch_across(other, t.model, t.base, metric=t.metric, sites=f"{t.heads}.z")


register(
    Method(
        "interp.forgetting.patch_across",
        number="the metric with one model's activation in the other; of their difference, what is left and what heals",
        shown="curve",
        needs=("metric",),
        papers=("2410.06606",),
        passes=lambda t: 2 * (5 + t.sweep),
        example=_example,
    )
)
