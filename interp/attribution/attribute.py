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

from torch import Tensor

from interp.attribution import path, plain, ruled, star
from interp.attribution.pair import Pair, paired
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.metrics.judge import Metric
from interp.patching.alignment import How, Reduce
from interp.patching.sources import Source
from interp.provenance import about
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model

Method = Literal["atp", "atp-qk", "atp*", "relp", "attnlrp", "cp-lrp", "gim", "ig", "conductance"]
METHODS: tuple[str, ...] = ("atp", "atp-qk", "atp*", *ruled.SETS, "ig", "conductance")


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
    steps: int = path.STEPS,
    verify: Literal["auto", "all"] | int = "auto",
    seed: int = 0,
) -> Effects:
    """The estimated effect of every cell, labelled as by `interp.patch`.

    `rules` replaces a method's relevance rules; `steps` are those of ig and conductance. `verify` patches exactly
    beside it: "all" cells, a sample of `n`, 0 for none, "auto" for all where affordable; see `.meta["verify"]`.
    Inputs that do not line up say how with `align=` and `reduce=`, as in `interp.patch`; a base token takes what its
    partner in the source has, tokens without one count for nothing, and the methods along a path refuse.
    """
    _refuse(method, rules)
    wanted = [sites] if isinstance(sites, str) else list(sites)
    asked = paired(model, base, source, metric, wanted, positions, align=align, reduce=reduce)

    def estimate(other: Pair) -> Tensor:
        return _estimated(other, method, rules, steps)

    values = estimate(asked)
    passes = asked.passes
    checked = {}
    if verify != 0:
        from interp.attribution.verify import agreement

        checked = {"verify": agreement(asked, values, estimate, how=verify, magnitudes=method == "atp*", seed=seed)}
    return _effects(asked, values, {"method": method, "passes": passes, **asked.notes, **checked})


def _refuse(method: str, rules: Sequence[str] | None) -> None:
    if method not in METHODS:
        raise InputsError(f"no attribution method {method!r}; there are {', '.join(METHODS)}.")
    if rules is not None and method not in ruled.SETS:
        raise InputsError(f"rules= belongs to {', '.join(ruled.SETS)}; method={method!r} takes the plain gradient.")


def _estimated(asked: Pair, method: str, rules: Sequence[str] | None, steps: int) -> Tensor:
    if method in ruled.SETS:
        return ruled.estimate(asked, ruled.SETS[method] if rules is None else rules, strict=rules is not None)
    if method == "ig":
        return path.estimate(asked, steps=steps)
    if method == "conductance":
        return path.conductance(asked, steps=steps)
    return {"atp": plain.estimate, "atp-qk": star.signed, "atp*": star.estimate}[method](asked)


def _effects(asked: Pair, values: Tensor, said: Mapping[str, Any]) -> Effects:
    sites, columns = asked.labels()
    assert asked.score is not None
    corruption = asked.source if isinstance(asked.source, str) else "run"
    return Effects(
        sites=sites, positions=columns, values=values, base=asked.score,
        source=asked.other, noise_floor=0.0,
        meta={**about(asked.model.module, asked.base), "direction": "source into base", "metric": repr(asked.metric),
              "corruption": corruption, "align": None if asked.align is None else str(asked.align), **said},
    )  # fmt: skip
