"""Attribution: estimates of what `interp.patch` would find, for every cell at once, compared with exact patching.

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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from interp.attribution.pair import STEPS, Pair, Setting, paired
from interp.attribution.verify import Check, checks, question, report, work_of
from interp.cells.calls import frame_without
from interp.cells.journal import PLAN, plan_of
from interp.cells.shards import Asked, Frame, Shard, ShardDone, asked, framed, mark, part, refuse_shard
from interp.cells.work import begin, read_back
from interp.hooks.drive.faster import settled
from interp.hooks.drive.sweep import activations
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.patching.alignment import How, Reduce
from interp.patching.sources import Source
from interp.patching.swept import run, task_of
from interp.provenance import about, refuse_unwritten
from interp.records import Method, Variant, register, variants
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model


def methods() -> dict[str, Variant]:
    """Every way to take the gradient, by name; each is registered in a file of its own in this room."""
    return variants("interp.attribute", room="attribution")


@overload
def attribute(model: Model, *, shard: None = None, **how: Any) -> Effects: ...
@overload
def attribute(model: Model, *, shard: tuple[int, int] | str, **how: Any) -> ShardDone: ...


@hands_over  # type: ignore[misc]  # the overloads leave the rest to this
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
    out: str | Path | None = None,
    shard: Asked = None,
    engine: Any = None,
) -> Effects | ShardDone:
    """The estimated effect of every cell, labelled as by `interp.patch`.

    `rules` replaces a method's relevance rules; `steps` are those of ig and conductance. `verify` patches exactly
    to compare with them: "all" cells, a sample of `n`, 0 for none, "auto" for all where affordable; see
    `.meta["verify"]`. For inputs that do not line up give `align=` and `reduce=`, as in `interp.patch`: a base token
    takes the value of its partner in the source, and tokens without a partner count 0; the methods along a path refuse
    such inputs. `out=` is a directory for the cells that are patched exactly: if the call is killed, make it again, and
    it continues with them. `shard=(0, 4)` patches the first of four parts of these cells, in its own directory, and
    `interp.scale.merge` makes the result of all four; each shard makes the estimates, which cost little. `engine` says
    what computes the cells (`interp/cells/work.py`).
    """
    mine = asked(shard, out)
    chosen = _chosen(method, rules)
    setting = Setting(None if rules is None else tuple(rules), steps)
    wanted = [sites] if isinstance(sites, str) else list(sites)
    pair = paired(model, base, source, metric, wanted, positions, align=align, reduce=reduce)
    if out is not None:
        refuse_unwritten(model.module)
        refuse_shard(out) if mine is None else mark(out, "interp.attribute", mine)

    def estimate(other: Pair) -> Tensor:
        found: Tensor = chosen.run(other, setting)
        return found

    values = estimate(pair)
    found = _effects(pair, values, {"method": method, "passes": pair.passes, **pair.notes})
    if verify == 0:
        return _unverified(found, out, mine, engine)
    task = {} if out is None else _task(pair, source, method, setting, verify, seed, out)
    checked, left = checks(
        pair, values, estimate, how=verify, magnitudes=not chosen.signed, seed=seed, out=out,
        product=None if out is None else _product(Path(out), model),
    )  # fmt: skip
    exact = [_exact(n, one, task, out, mine, engine) for n, one in enumerate(checked.values())]
    frame = _frame(found, checked, left)
    if mine is not None and out is not None:
        framed(out, frame)
        return part(out, "interp.attribute", mine)
    found = _verified(found, frame, exact)
    if out is not None:
        found.save(out)
    return found


def _unverified(found: Effects, out: str | Path | None, shard: Shard | None, engine: Any) -> Effects:
    if shard is not None or engine is not None:
        raise InputsError("shard= and engine= are for the cells that are patched exactly, and verify=0 patches none.")
    if out is not None:
        found.save(out)
    return found


def _task(
    pair: Pair, source: Source, method: str, setting: Setting, verify: Any, seed: int, out: str | Path
) -> dict[str, Any]:
    """What makes this check this check, as plain values."""
    asked = replace(question(pair, seed, out), align=pair.align, reduce=pair.reduce)
    given: Any = source if isinstance(source, str) or not isinstance(pair.source, Inputs) else pair.source
    made = task_of(asked, pair.base, given, {"": pair.metric})
    rules = None if setting.rules is None else list(setting.rules)
    return {**made, "method": method, "rules": rules, "steps": setting.steps, "verify": verify}


def _product(out: Path, model: Model) -> str:
    """The matrix products of what is patched: those of the plan that is there, else this machine's."""
    plan = out / _place(0) / PLAN
    return str(plan_of(plan)["product"]) if plan.exists() else settled(activations(model.module, model.anatomy))


def _place(n: int) -> str:
    """The directory of a direction's cells."""
    return f"verify{n}"


def _exact(
    n: int, check: Check, task: Mapping[str, Any], out: str | Path | None, shard: Shard | None, engine: Any
) -> Tensor:
    """The exact effects [cell, row] of one direction."""
    work = work_of(check, {**task, "direction": n})
    return run(work, begin(work, out=None if out is None else Path(out) / _place(n), shard=shard, turn=n), engine)[0][
        ""
    ]


def _frame(found: Effects, checked: Mapping[str, Check], left: Mapping[str, Any]) -> Frame:
    """The estimates, and what their check needs in addition to the exact effects."""
    made = frame_without(found, [])
    facts = {name: one.frame.facts for name, one in checked.items()}
    tensors = {f"{n}.{name}": x for n, one in enumerate(checked.values()) for name, x in one.frame.tensors.items()}
    return Frame({"effects": made.facts, "checks": facts, "left": dict(left)}, {**made.tensors, **tensors})


def _verified(found: Effects, frame: Frame, exact: Sequence[Tensor]) -> Effects:
    """The estimates with how far they are from the exact effects."""
    said = {}
    for n, (name, facts) in enumerate(frame.facts["checks"].items()):
        mine = {key.partition(".")[2]: x for key, x in frame.tensors.items() if key.startswith(f"{n}.")}
        said[name] = report(Frame(facts, mine), exact[n])
    return replace(found, meta={**found.meta, "verify": {**said, **frame.facts["left"]}})


def estimated(frame: Frame) -> Effects:
    """The estimates of a shard, without their check."""
    tensors = {name: x for name, x in frame.tensors.items() if "." not in name}
    return Effects.restored(dict(frame.facts["effects"]), tensors)


def finished(folder: Path, frame: Frame) -> Effects:
    """The result all of whose exact cells are there, as the call itself writes it."""
    found = _verified(
        estimated(frame), frame, [read_back(folder / _place(n))[0][""] for n in range(len(frame.facts["checks"]))]
    )
    found.save(folder)
    return found


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
