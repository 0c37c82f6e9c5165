"""Selective synaptic dampening: weights that matter to what shall be forgotten, and little to the rest, made smaller.

Foster et al. 2024 (arXiv 2308.07707). With I(w) the mean squared gradient of minus log p(answer) at weight w,

    w is chosen  where  I_forget(w) > alpha I_other(w)
    w <- w min(lambda I_other(w) / I_forget(w), 1)

and no step of training. `against="full"` takes as the other data both sets together, as the released code does (there a
weight that only the forgotten data use has the ratio of the set's sizes, so alpha has to stay below it);
`against="retain"`, the default, takes what is to be kept alone, so such a weight becomes 0. The paper dampens all
weights (`scope="all"`); that heads' weights alone are dampened, and what is read of it by head, is our adaptation:

    I(h)     the sum of I over the head's rows of W_Q, W_K, W_V and its columns of W_O
    ratio    I_forget(h) / I_other(h), with an interval over both sets' examples
    edits    z of the head times min(lambda I_other(h) / I_forget(h), 1), where I_forget(h) > alpha I_other(h)

`.on(model)` is a copy with the weights changed. `batch` rows share one gradient before it is squared: 1 is the
empirical Fisher information, larger ones are what the released code does.
Cost: a forward and a backward pass per `batch` rows of a task (of inputs one forward pass, and a backward pass through
all of it per `batch` rows), and per layer a backward pass into one attention for every head and twice every kv head.
Limits: a diagonal, at weights as they are; a confident model has tiny gradients, and ratios of tiny numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from interp.finite import finite
from interp.forgetting.dampened import Dampened
from interp.forgetting.head_weights import WeightsByHead, squared
from interp.heads.measures.asked import Asked, asked
from interp.hooks.anatomy.spread import refuse_cut
from interp.hooks.errors import InputsError
from interp.provenance import about
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

Scope = Literal["heads", "all"]
Against = Literal["retain", "full"]


@torch.enable_grad()
def dampen(
    model: Model,
    forget: Any,
    retain: Any,
    *,
    labels: Sequence[int] | Tensor | None = None,
    retain_labels: Sequence[int] | Tensor | None = None,
    alpha: float = 10.0,
    lam: float = 1.0,
    scope: Scope = "heads",
    against: Against = "retain",
    heads: str = "L*.H*",
    batch: int = 1,
) -> Dampened:
    """`forget` and `retain` are tasks, or inputs with `labels` and `retain_labels`. The model stays as it is:
    `.on(model)` is the changed copy, `.edits()` the change of heads alone."""
    if scope not in ("heads", "all") or against not in ("retain", "full"):
        raise InputsError(f"scope= is 'heads' or 'all', against= 'retain' or 'full'; got {scope!r} and {against!r}.")
    if not alpha > 0 or not lam > 0 or batch < 1:
        raise InputsError(f"alpha= and lam= are above 0, batch= at least 1; got {alpha}, {lam} and {batch}.")
    sets = [_asked(model, data, given, heads, name) for data, given, name in
            ((forget, labels, "forget"), (retain, retain_labels, "retain"))]  # fmt: skip
    own = WeightsByHead.of(model, sets[0].sites)
    named = _named(model, own, scope)
    (first, ours), (second, theirs) = (_information(one, own, named, batch) for one in sets)
    share = len(sets[0].x) / (len(sets[0].x) + len(sets[1].x))
    other = second if against == "retain" else {n: share * first[n] + (1 - share) * second[n] for n in named}
    factors = {name: _factor(first[name], other[name], alpha, lam) for name in named}
    how = {"alpha": alpha, "lam": lam, "scope": scope, "against": against, "batch": batch, "share": share}
    meta = {**about(model.module, sets[0].x), "method": "dampen", **how}
    sites, towers = sets[0].names, sets[0].towers
    touched, factor = (torch.stack([_mean(own, name, values) for name in own.places]) for values in
                       ({n: (f < 1).double() for n, f in factors.items()}, factors))  # fmt: skip
    by = {name: value.to(torch.promote_types(named[name].dtype, torch.float32)) for name, value in factors.items()}
    return Dampened(
        sites, towers, finite(ours, "squared gradients"), finite(theirs, "squared gradients"), touched, factor,
        {name: value for name, value in by.items() if bool((value < 1).any())}, meta,
    )  # fmt: skip


def _asked(model: Model, data: Any, labels: Any, heads: str, name: str) -> Asked:
    """The data with its right answers."""
    found = asked(model, data, labels=labels, heads=heads)
    if not len(found.x):
        raise InputsError(f"the {name} set is empty: give at least one example.")
    if found.labels is None and found.metric is None:
        said = "labels" if name == "forget" else "retain_labels"
        raise InputsError(f"the {name} set has no right answers: give a task, or inputs with {said}=.")
    return found


def _named(model: Model, own: WeightsByHead, scope: Scope) -> dict[str, nn.Parameter]:
    """The parameters that are looked at."""
    refuse_cut(model.module, "what its weights carry is not taken head by head")
    every = dict(model.module.named_parameters())
    wanted = own.names() if scope == "heads" else [name for name, p in every.items() if p.is_floating_point()]
    return {name: every[name] if name in every else model.module.get_parameter(name) for name in wanted}


def _information(
    one: Asked, own: WeightsByHead, named: Mapping[str, nn.Parameter], batch: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The mean squared gradient of each weight, on the CPU, and its sums over heads [head, batch of rows]."""
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
    sums = []
    for found in squared(one, named, batch):
        sums.append(own.sums(found))
        total = {name: value + found[name].cpu() for name, value in total.items()}
    return {name: value / len(sums) for name, value in total.items()}, torch.stack(sums, 1)


def _factor(forget: Tensor, other: Tensor, alpha: float, lam: float) -> Tensor:
    """What each weight is multiplied by."""
    chosen = forget > alpha * other
    return torch.where(chosen, (lam * other / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1.0), 1.0)


def _mean(own: WeightsByHead, head: str, values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in own.parts(head, values)]).mean()


register(
    Method(
        "interp.forgetting.dampen",
        number="how much more a head's weights matter to what is to be forgotten than to what is kept",
        shown="map",
        needs=("task",),
        values="forget",
        signed=False,
        passes=lambda t: 2 * (1 + 2 * 3) + 4,
        example=lambda t: dampen(
            t.model, t.base, t.source, labels=t.labels, retain_labels=list(reversed(t.labels)), alpha=1.0, heads=t.heads
        ),
    )
)
