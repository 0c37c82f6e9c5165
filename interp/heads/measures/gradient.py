"""What a gate on a head's output would feel: Michel et al. 2019 (arXiv 1905.10650), without a gate.

With xi_h a factor on z_h and M the metric of one example, `dM/dxi_h = sum_t z_h,t . dM/dz_h,t`, which one forward and
one backward pass give for every head. Four readings of it, per example:

    gradient         |sum_t z . dz|        as the paper has it: the magnitude after the positions are summed
    gradient-l2      the same, the mean over examples divided by its l2 norm over the layer's heads, as the paper does
    gradient-token   sum_t |z . dz|, then the layer's l2 norm: as the released code has it
    gradient-signed  sum_t z . dz          first order of what the metric loses when the head is removed

The two magnitudes differ where positions pull in opposite directions. Limits: first order, so a head whose absence
another one makes up for, and a saturated one, look as they do at full strength.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.measures.asked import Asked, Run
from interp.heads.measures.measured import Measured
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import graph
from interp.metrics.judge import Metric, judged
from interp.metrics.reading import reading
from interp.records import Variant, register

PASSES = 2.0


def gates(asked: Asked, metric: Metric) -> dict[Site, Tensor]:
    """z . dM/dz [example, position, head] by whole site, float32 or better, 0 at padding."""
    model, x = asked.model, asked.x

    def score(logits: Tensor) -> Tensor:
        return judged(metric, x, logits)

    kwargs = model.called_with(x.kwargs)
    with reading(model, metric):
        run = graph(model.module, model.anatomy, x, kwargs, sites=asked.whole, score=score, family=model.family)
    slopes, found = run.gradients(), {}
    for site, z in run.values.items():
        wide = torch.promote_types(z.dtype, torch.float32)
        each = (z.detach().to(wide) * slopes[site].to(wide)).sum(-1)
        found[site] = torch.where(asked.real(site, each)[..., None], each, 0.0)
    return found


def measured(run: Run, names: list[str]) -> list[Measured]:
    """Those of the four that are asked for, from one graph."""
    asked = run.asked
    each = gates(asked, asked.judged(names[0]))
    signed = asked.by_head({site: value.sum(1) for site, value in each.items()})
    tokens = asked.by_head({site: value.abs().sum(1) for site, value in each.items()})
    made = {
        "gradient": Measured("gradient", signed.abs(), passes=PASSES),
        "gradient-l2": Measured("gradient-l2", signed.abs(), reduce="layer", passes=PASSES),
        "gradient-token": Measured("gradient-token", tokens, reduce="layer", passes=PASSES),
        "gradient-signed": Measured("gradient-signed", signed, order="abs", passes=PASSES),
    }
    return [made[name] for name in names]


_NUMBERS = {
    "gradient": "size of what the metric feels of a gate on the head, positions summed first",
    "gradient-l2": "the same over the length of its layer's, 0 to 1",
    "gradient-token": "the same with sizes summed over positions, 0 to 1",
    "gradient-signed": "what the metric loses to first order when the head is removed",
}
for _order, _name in enumerate(_NUMBERS):
    register(
        Variant(
            "interp.importance", _name, argument="by", number=_NUMBERS[_name], run=measured, order=10 + _order,
            passes=lambda t: 2, how={"shares": "gradient"}, signed=_name == "gradient-signed",
        )
    )  # fmt: skip
