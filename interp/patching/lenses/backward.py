"""The backward lens: the gradient of the answer at each place, read as words: what would have to be added there.

Katz et al. 2024 (arXiv 2402.12865). The gradient of a weight matrix is a sum over positions of what went in times the
gradient at what came out, x_i delta_i^T; delta has the residual's width at the outputs of attention and MLP, so it can
be read through the unembedding as the logit lens reads what was written: its words are those whose direction, written
there, raises the metric most, and at the other end those that lower it. Gradients are taken of `interp`'s metrics,
which are larger for the right answer; a training loss has the sign turned round. The final norm's gain is folded in,
what it divides by is left out. The result also has the gradient's length, which says how much depends on the place.
Cost: one forward and one backward pass, then the unembedding's product per place and position asked for. Limits: first
order; words of early layers are read in the last layer's basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.tail import Tail, last_tower, unembedding
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import graph
from interp.metrics.judge import Judge, Metric, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.patching.lenses.fitted import last_residual
from interp.patching.lenses.said import columns_of, names_of, places_of
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class BackwardLens(Saved):
    """The words at both ends of each gradient, and how long it is [place, example, read]."""

    STEM = "backward_lens"

    sites: tuple[str, ...]
    """The places whose gradients are read, such as "L3.attn_out"."""
    positions: Tensor
    """Columns that were read [example, read]."""
    raising: Tensor
    """Ids of the words whose direction raises the metric most [place, example, read, k]."""
    lowering: Tensor
    """Ids of the words whose direction lowers the metric most [place, example, read, k]."""
    size: Tensor
    """The length of the gradient [place, example, read]."""
    names: Mapping[int, str] = field(default_factory=dict)
    """By id, the text of the words; empty where it is not known."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row per place, example and position: the gradient's length and the words at its ends."""
        import pandas

        rows = [
            {"site": site, "example": b, "position": int(self.positions[b, at]), "size": float(self.size[n, b, at]),
             "raising": self._said(self.raising[n, b, at]), "lowering": self._said(self.lowering[n, b, at])}
            for n, site in enumerate(self.sites) for b in range(self.size.shape[1]) for at in range(self.size.shape[2])
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def _said(self, ids: Tensor) -> list[str]:
        return [self.names.get(int(i), str(int(i))) for i in ids]

    def _figure(self) -> Figure:
        """Lengths, places by positions read, averaged over examples."""
        values = self.size.mean(1).numpy()
        return Figure([Heatmap(values, self.sites, x="position read", y="place", name="length", scale="size")])

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> BackwardLens:
        """Words by number again."""
        return super().restored({**facts, "names": {int(i): n for i, n in facts["names"].items()}}, tensors)

    def __repr__(self) -> str:
        best = int(self.size.mean((1, 2)).argmax())
        return f"BackwardLens at {len(self.sites)} places; the metric depends most on {self.sites[best]}, raised by" \
               f" {', '.join(self._said(self.raising[best, 0, -1]))}"  # fmt: skip


@hands_over
@torch.enable_grad()
def backward_lens(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    sites: str | Iterable[str] = ("L*.attn_out", "L*.mlp_out"),
    positions: Positions = "last",
    top: int = 5,
) -> BackwardLens:
    """The words of the metric's gradient at residuals and writes of the tower that answers."""
    stack = last_tower(model.ready(), None)
    places = places_of(model, stack, [sites] if isinstance(sites, str) else list(sites))
    if heads := [site for site in places if site.component == "result"]:
        raise SiteError(f"{heads[0]}: what heads write is not a place that gradients are taken at; name attn_out.")
    x = model.inputs(inputs)
    end = last_residual(places[0], stack)
    found, spoken, columns = _asked(model, x, metric, places, end, positions)
    if not 1 <= top <= spoken.shape[1]:
        raise InputsError(f"top is 1 to {spoken.shape[1]} words, got {top}.")
    rows = torch.arange(len(columns))[:, None]
    slopes = [found[site].detach()[rows, columns].double().cpu() for site in places]
    each = [finite(one, f"gradients at {site}") for one, site in zip(slopes, places, strict=True)]
    said = [((one @ spoken), one.norm(dim=-1)) for one in each]
    ends = [torch.stack([(sign * value).topk(top, -1).indices for value, _ in said]) for sign in (1, -1)]
    return BackwardLens(
        tuple(map(str, places)), columns, ends[0], ends[1], torch.stack([size for _, size in said]),
        names_of(model, torch.cat(ends)),
        {**about(model.module, x), "method": "backward lens", "metric": metric_name(metric)},
    )  # fmt: skip


def _asked(
    model: Model, x: Any, metric: Metric, places: list[Site], end: Site, positions: Positions
) -> tuple[Mapping[Site, Tensor], Tensor, Tensor]:
    """Gradients by place, the unembedding [d, word] with the norm's gain, and the columns that are read."""
    stack = last_tower(model.anatomy, None)
    kwargs = model.called_with(x.kwargs)

    def score(logits: Tensor) -> Tensor:
        reads = reads_of(metric, x, logits.detach())
        return Judge(metric, x, classes=logits.ndim == 2)(reads.of(logits))

    run = graph(model.module, model.anatomy, x, kwargs, sites=list(dict.fromkeys([*places, end])), score=score,
                family=model.family)  # fmt: skip
    logits, left = run.logits.detach(), run.values[end].detach()
    columns = columns_of(x, logits, positions, stack)
    tail = Tail(model.module, stack, kwargs, left=left, logits=logits)
    spoken = unembedding(tail).double().cpu()
    gain = tail.frozen.gain.double().cpu()
    made = gain[:, None] * spoken if gain.ndim else gain * spoken
    return run.gradients(), (made - made.mean(0) if tail.frozen.centred else made), columns


def _trial(t: Trial) -> BackwardLens:
    return backward_lens(t.model, t.base, metric=t.metric, sites=f"{t.tower}L*.resid_post", positions=t.reads, top=2)


register(
    Method(
        "interp.patching.backward_lens",
        number="length of the metric's gradient at a place, with the words at its ends",
        shown="table",
        needs=("metric",),
        values="size",
        examples=1,
        passes=lambda t: 7 if t.kind == "vit" else 5,
        example=_trial,
    )
)
