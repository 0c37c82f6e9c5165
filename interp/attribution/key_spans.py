"""Which tokens' attention mattered: per head, what the metric owes to each span of keys, without a further backward.

With z the head's output, g its gradient, w_c the weight on span c and O_c the attention to that span alone,

    knockout    sum over queries of w_c / (1 - w_c) (g . O_c - g . z): to first order in z the fall of the metric when
                the span is made invisible and the other weights renormalise (the default)
    log_weight  sum over queries of w_c (g . O_c - g . z): the derivative by a bias on the span's scores; on a
                saturated head (w_c near 1) it vanishes and can have the wrong sign

Both are exact sums over the pattern that never form it: spans are merged from flash calls (`kernels/cpu/merge.py`)
where the mask is plain and spans are runs of keys, and else read a few rows at a time. Cost: one forward pass, one
backward, and about one attention more per layer. Limits: first order in z, one layer at a time; rows whose whole weight
is on a span have no knock-out and count 0; models whose attention goes through transformers' interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import layer_name
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import graph
from interp.hooks.stand.call import Call, part_of, row_chunks, visible
from interp.kernels.cpu import merge
from interp.kernels.masks.symbols import Causal
from interp.metrics.judge import Metric, judged
from interp.metrics.reading import hands_over
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

FORMS = ("knockout", "log_weight")


@dataclass(frozen=True, eq=False)
class KeySpans(Told):
    """`values` [layer, head, span, example]: positive where the metric needs the span."""

    layers: tuple[str, ...]
    """The name of each layer."""
    spans: tuple[str, ...]
    """The name of each span of keys."""
    values: Tensor
    """[layer, head, span, example]: what the metric owes to attention to the span."""
    form: str
    """"knockout" or "log_weight", as in `form=`."""
    impl: tuple[str, ...]
    """How each layer was computed."""

    def to_array(self) -> Any:
        """Means over examples as a labelled array (xarray): [layer, head, span]."""
        import xarray

        coords = {"layer": list(self.layers), "head": range(self.values.shape[1]), "span": list(self.spans)}
        return xarray.DataArray(self.values.mean(-1).numpy(), dims=list(coords), coords=coords, name=self.form)

    def to_frame(self) -> Any:
        """One row per layer, head and span."""
        return self.to_array().to_dataframe().reset_index()

    def __repr__(self) -> str:
        best = int(self.values.mean(-1).abs().argmax())
        layer, head, span = torch.unravel_index(torch.tensor(best), self.values.shape[:3])
        where = f"{self.layers[int(layer)]}.H{int(head)} on {self.spans[int(span)]!r}"
        return f"KeySpans ({self.form}) of {len(self.layers)} layers; largest {where}"


@hands_over
@torch.enable_grad()
def key_spans(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    spans: Mapping[str, Positions],
    heads: str = "L*",
    form: str = "knockout",
) -> KeySpans:
    """What the metric owes to each head's attention to each named span of keys: a role, a `Span`, columns, a slice."""
    if form not in FORMS:
        raise InputsError(f"form is one of {', '.join(FORMS)}, got {form!r}.")
    anatomy = model.ready()
    x = model.inputs(inputs)
    sites = [Site(s.tower, s.layer, "z") for s in anatomy.sites(heads if heads.endswith(".z") else f"{heads}.z")]
    outside = next((s for s in sites if not anatomy.layer(s).seen), None)
    if outside is not None:
        raise ModelError(f"{outside}: its attention call is not seen, so its keys cannot be weighed.")

    def score(logits: Tensor) -> Tensor:
        return judged(metric, x, logits)

    kwargs = model.called_with(x.kwargs)
    run = graph(model.module, anatomy, x, kwargs, sites=sites, score=score, calls=sites, family=model.family)
    slopes = run.gradients()
    rows, impl = [], []
    for site in sites:
        cross = anatomy.layer(site).kind == "cross"
        keys = Site(site.tower, site.layer, "k")
        sets = [tower_inputs(x, keys, cross=cross).mask(spec) for spec in spans.values()]
        found, how = _layer(run.calls[site], slopes[site], sets)
        rows.append(found[FORMS.index(form)])
        impl.append(how)
    names = tuple(map(layer_name, sites))
    if len({r.shape[1] for r in rows}) > 1:
        raise InputsError("these layers have different numbers of heads: ask for layers of one kind with heads=.")
    values = torch.stack([r.permute(2, 0, 1).cpu() for r in rows]).double()
    return KeySpans(names, tuple(spans), values, form, tuple(impl))


def _layer(call: Call, dz: Tensor, sets: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], str]:
    """Both forms [span, batch, head] of one attention call, and how they were computed."""
    bounds = _bounds(sets, call.k.shape[2])
    call.refuse_programs(range(call.q.shape[1]))
    with torch.no_grad():
        if bounds is not None and _plain(call):
            return _merged(call, dz, bounds, sets), "merge"
        return _by_rows(call, dz, sets), "rows"


def _plain(call: Call) -> bool:
    mask = visible(call)
    square = call.q.shape[2] == call.k.shape[2]
    return (
        call.q.device.type == "cpu"
        and (mask is None or (isinstance(mask, Causal) and square))
        and call.softcap is None and call.sinks is None and call.bias is None
        and call.q.shape[-1] == call.v.shape[-1]
    )  # fmt: skip


def _bounds(sets: Sequence[Tensor], keys: int) -> list[tuple[int, int]] | None:
    """Runs of keys that no set cuts, if every set is one of these runs and the same for all examples."""
    cuts, runs = {0, keys}, []
    for mask in sets:
        at = mask[0].nonzero().flatten().tolist()
        if mask.shape[1] != keys or not bool((mask == mask[:1]).all()) or at != list(range(at[0], at[-1] + 1)):
            return None
        runs.append((at[0], at[-1] + 1))
        cuts |= set(runs[-1])
    ends = sorted(cuts)
    bounds = list(pairwise(ends))
    return bounds if all(run in bounds for run in runs) else None


def _merged(call: Call, dz: Tensor, bounds: list[tuple[int, int]], sets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    causal = isinstance(visible(call), Causal)
    found = merge.spans(call.q, call.k, call.v, bounds=bounds, causal=causal, scale=call.scale)
    log_weight, knockout = merge.attribution(found, dz.transpose(1, 2).to(found.z.dtype))
    starts = [int(mask[0].int().argmax()) for mask in sets]
    at = [next(n for n, (low, _) in enumerate(bounds) if low == start) for start in starts]
    return knockout[at], log_weight[at]


def _by_rows(call: Call, dz: Tensor, sets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same from the weights of a few rows at a time, for any mask and any sets."""
    part = part_of(call, tuple(range(call.q.shape[1])))
    total = torch.zeros(2, len(sets), *call.q.shape[:2], device=call.q.device)
    for rows in row_chunks(call):
        a = part.softmax(part.scores(rows))
        g = part.along_values(dz[:, rows].transpose(1, 2).to(a.dtype))
        ag = a * g
        sunk = 0.0 if part.sinks is None else (1 - a.sum(-1)).clamp(min=0)
        for n, mask in enumerate(sets):
            member = mask.to(a.device)[:, None, None, :].to(a.dtype)
            w, rest = (a * member).sum(-1), (a * (1 - member)).sum(-1) + sunk
            own, other = (ag * member).sum(-1), (ag * (1 - member)).sum(-1)
            total[0, n] += torch.where(rest > 0, own - w * other / torch.where(rest > 0, rest, 1.0), 0.0).sum(-1)
            total[1, n] += (own - w * (own + other)).sum(-1)
    return total[0], total[1]


register(
    Method(
        "interp.attribution.key_spans",
        number="first-order estimate of what a span of keys gives the metric through a head, in the metric's unit",
        shown="map",
        needs=("metric",),
        passes=lambda t: 3,
        example=lambda t: key_spans(
            t.model, t.base, metric=t.metric, spans={"first": [0], "more": [1, 2]}, heads=f"{t.tower}L*"
        ),
    )
)
