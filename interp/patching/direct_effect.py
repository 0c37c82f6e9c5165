"""Direct effects: what each head, MLP and the embedding writes straight to the answer, around everything later.

Direct logit attribution (Elhage et al. 2021; the direct effect of Wang et al. 2022, arXiv 2211.00593): the last
residual is a sum of writes, the final norm with its scale held at the run's is linear, and so is the head, so the
answer is a sum over the parts. `effect(part) = < norm_held(write), d metric / d normed >`, summed over the positions
that are read. `bias` is the metric at a normed residual of zero plus what attention biases and the norm's shift add,
`remainder` what a metric that is not linear in the logits (or a softcap) leaves over, 0 otherwise. All parts together
are the metric.
Cost: one recorded forward pass and the head's gradient. Limits: a direct effect is not an effect: later heads may undo
it, and the held scale hides that a part changes the norm; towers that normalise after adding are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import InputsError
from interp.hooks.run.writes import Writes
from interp.metrics.judge import Judge, Metric, answer_ids, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.metrics.shipped import Logit
from interp.records import Method, register
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.hooks.drive.sweep import Reads
    from interp.model import Model


@hands_over
@torch.enable_grad()
def direct_effect(
    model: Model, inputs: Any, *, metric: Metric | None = None, answers: Any = None, tower: str | None = None
) -> Effects:
    """Every part's share of the metric of this run, per example.

    `metric` is a logit difference or any other metric; `answers`, ids or words a row, means the mean of their
    logits. The parts are `embed`, `L*.H*.result`, `L*.mlp_write`, `bias` and `remainder`.
    """
    anatomy = model.ready()
    x = model.inputs(inputs)
    metric = _metric(model, metric, answers)
    stack = last_tower(anatomy, tower)
    tape = model.run(x, record=Writes.sites(anatomy, stack))
    writes = Writes(model.module, tape, stack)
    writes.check()
    tail = Tail(model.module, stack, model.called_with(x.kwargs), left=writes.final, logits=tape["logits"])
    reads = reads_of(metric, x, tape["logits"])
    judge = Judge(metric, x, classes=tape["logits"].ndim == 2)
    toward = _Toward(tail, reads, judge)
    values = [toward(tail.frozen.linear(write)) for _, write in writes.walk()]
    bias = toward(tail.frozen.linear(writes.biases) + tail.frozen.shift) + toward.zero
    value = judge(reads.of(tape["logits"])).double()
    rest = value - torch.stack([*values, bias]).sum(0)
    return Effects(
        sites=(*map(str, writes.parts), "bias", "remainder"), positions=None,
        values=torch.stack([*values, bias, rest]).cpu(), base=value.cpu(), source=None,
        noise_floor=_rounding(tape["logits"], values),
        meta={**tape.meta, "metric": metric_name(metric), "method": "direct effect", "corruption": "none",
              "norm": "scale held at this run's"},
    )  # fmt: skip


def _metric(model: Model, metric: Metric | None, answers: Any) -> Metric:
    if (metric is None) == (answers is None):
        raise InputsError("direct_effect needs what it is an effect on: one of metric= and answers=.")
    return metric if metric is not None else Logit(answer_ids(model, answers))


class _Toward:
    """The metric's gradient at what comes out of the final norm, and its value there at zero."""

    def __init__(self, tail: Tail, reads: Reads, judge: Judge) -> None:
        normed = tail.normed(tail.left, "frozen").detach().requires_grad_()
        with torch.enable_grad():
            value = judge(tail.logits(normed, reads))
        if not value.requires_grad:
            raise InputsError(f"the metric {judge.metric!r} has no gradient (an accuracy?): use a logit difference.")
        (self.gradient,) = torch.autograd.grad(value.sum(), normed)
        with torch.no_grad():
            self.zero = judge(tail.logits(torch.zeros_like(tail.left), reads)).double()

    def __call__(self, part: Tensor) -> Tensor:
        return (part.double() * self.gradient.double()).flatten(1).sum(1).to(self.zero.device)


def _rounding(logits: Tensor, values: list[Tensor]) -> float:
    """What rounding may leave in a sum of parts this large."""
    size = float(torch.stack(values).abs().sum(0).max())
    return 16 * torch.finfo(logits.dtype if logits.is_floating_point() else torch.float32).eps * max(1.0, size)


register(
    Method(
        "interp.patching.direct_effect",
        number="what the head writes straight to the answer, later layers left out",
        shown="map",
        needs=("metric",),
        label="direct effect",
        papers=("2211.00593",),
        passes=lambda t: 3,
        example=lambda t: direct_effect(t.model, t.base, metric=t.metric, tower=t.tower.rstrip(".") or None),
    )
)
