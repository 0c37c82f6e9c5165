"""Attribution: estimates of what `interp.patch` would find, for every cell at once, held against exact patching.

One recorded run of the source, one of the base with its gradient, and each cell is <what the source would change, what
the metric makes of it>. The methods differ in how the gradient is taken: see `interp/attribution/` for each one's
definition, cost and limits. An estimate never travels alone: unless told otherwise the cells are patched exactly as
well, all of them where that is affordable and else a stratified sample, in both directions
(`interp/attribution/verify.py`). Cost: two forward passes and one backward for atp and the relevance rules, L backward
ones for atp*, one of each per step for ig and conductance; then the check, a sweep of `interp.patch`. Limits:
first-order methods are exact only where the metric is linear in the site; no method is best everywhere. LXT's authors
state that LRP (relp, attnlrp, cp-lrp) is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.attribution.pair import STEPS, Pair, Setting, paired
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.patching.alignment import How, Reduce
from interp.patching.sources import Source
from interp.provenance import about
from interp.records import Method, Variant, register, variants
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model


def methods() -> dict[str, Variant]:
    """Every way to take the gradient, by name; each is registered in a file of its own in this room."""
    return variants("interp.attribute", room="attribution")


@hands_over
@torch.enable_grad()
def attribute(
    model: Model,
    *,
    base: Any,
    source: Source,
    metric: Metric,
    sites: str | Iterable[str],
    positions: Literal["joint", "each"] | Positions = "joint",
    align: How | None = None,
    reduce: Reduce | None = None,
    method: str = "atp",
    rules: Sequence[str] | None = None,
    steps: int = STEPS,
    verify: Literal["auto", "all"] | int = "auto",
    seed: int = 0,
) -> Effects:
    """The estimated effect of every cell, labelled as by `interp.patch`.

    `rules` replaces a method's relevance rules; `steps` are those of ig and conductance. `verify` patches exactly
    beside it: "all" cells, a sample of `n`, 0 for none, "auto" for all where affordable; see `.meta["verify"]`.
    Inputs that do not line up say how with `align=` and `reduce=`, as in `interp.patch`; a base token takes what its
    partner in the source has, tokens without one count for nothing, and the methods along a path refuse.
    """
    chosen = _chosen(method, rules)
    setting = Setting(None if rules is None else tuple(rules), steps)
    wanted = [sites] if isinstance(sites, str) else list(sites)
    asked = paired(model, base, source, metric, wanted, positions, align=align, reduce=reduce)

    def estimate(other: Pair) -> Tensor:
        found: Tensor = chosen.run(other, setting)
        return found

    values = estimate(asked)
    passes = asked.passes
    checked = {}
    if verify != 0:
        from interp.attribution.verify import agreement

        checked = {"verify": agreement(asked, values, estimate, how=verify, magnitudes=not chosen.signed, seed=seed)}
    return _effects(asked, values, {"method": method, "passes": passes, **asked.notes, **checked})


def _chosen(method: str, rules: Sequence[str] | None) -> Variant:
    known = methods()
    if method not in known:
        raise InputsError(f"no attribution method {method!r}; there are {', '.join(known)}.")
    ruled = [name for name, one in known.items() if "rules" in one.how]
    if rules is not None and method not in ruled:
        raise InputsError(f"rules= belongs to {', '.join(ruled)}; method={method!r} takes the plain gradient.")
    return known[method]


def _effects(asked: Pair, values: Tensor, said: Mapping[str, Any]) -> Effects:
    sites, columns = asked.labels()
    assert asked.score is not None
    corruption = asked.source if isinstance(asked.source, str) else "run"
    return Effects(
        sites=sites, positions=columns, values=values.cpu(), base=asked.score.cpu(),
        source=None if asked.other is None else asked.other.cpu(), noise_floor=0.0,
        meta={**about(asked.model.module, asked.base), "direction": "source into base",
              "metric": metric_name(asked.metric), "corruption": corruption,
              "align": None if asked.align is None else str(asked.align), **said},
    )  # fmt: skip


register(
    Method(
        "interp.attribute",
        number="estimated effect on the metric, source into base, in the metric's unit: what `interp.patch` would find",
        shown="map",
        needs=("metric", "source"),
        passes=lambda t: 3,
        example=lambda t, **how: attribute(
            t.model, base=t.base, source=t.source, metric=t.metric, sites=f"{t.heads}.z", verify=0, **how
        ),
    )
)
