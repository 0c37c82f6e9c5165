"""Path patching: how much of a head's effect goes from a sender straight into a receiver.

Wang et al. 2022 (IOI, arXiv 2211.00593) and Goldowsky-Dill et al. 2023 (arXiv 2304.05969). The sender takes its value
from the source run while everything between it and the receiver is frozen to the base run; what the receiver then reads
is put into it in an otherwise free base run, and `effect = metric(patched) - metric(base)`. `freeze="heads"` freezes
all attention and recomputes the MLPs in between (IOI), `freeze="all"` freezes those too: then the receiver's residual
is `resid(base) + write(source) - write(base)`, and no pass is needed to build it. The norm in front of the receiver
(and, with `freeze="all"`, one behind the sender) is recomputed, or held at the base's scale with `ln="freeze"`: then
what the receiver reads is a sum over senders. Cost: four recorded passes, then per sender its own block, the MLPs above
it for the tokens that moved (`hooks/drive/chain.py`; neither with `freeze="all"`), the receiver's block, and what the
receiver can reach (`hooks/drive/replay.py`), which for the logits is nothing. Senders that change nothing have an
effect of exactly 0. Limits: towers whose blocks can be run one by one; several receivers are patched together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.chain import Chain
from interp.hooks.drive.sweep import Sweep
from interp.hooks.drive.tail import How, Tail, last_tower
from interp.hooks.errors import SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site
from interp.metrics.judge import Judge, Metric, lined_up, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.patching.paths import READS, Freeze, Norms, Paths, before
from interp.records import Method, register
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.hooks.drive.sweep import Reads
    from interp.model import Model

TOGETHER = 64
"""Senders that are driven, and whose receivers' values are held, at a time."""


@hands_over
def path_patch(
    model: Model,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    receivers: str | Iterable[str],
    senders: str | Iterable[str] = "L*.H*",
    freeze: Freeze = "heads",
    ln: Norms = "recompute",
    positions: Positions | None = None,
) -> Effects:
    """The effect of every sender through the receivers alone.

    Senders are heads `L*.H*`, `L*.mlp_write` and `embed`; receivers `L9.H6.q_in`, `L9.K1.k_in`, `L9.K1.v_in`,
    `L9.mlp_in`, or `logits` alone. Patterns take the senders that come before a receiver; `positions` says at which
    ones they are moved.
    """
    _option("freeze", freeze, ("heads", "all"))
    _option("ln", ln, ("recompute", "freeze"))
    anatomy = model.ready()
    x, y = lined_up(model, base, source)
    stack = last_tower(anatomy, None)
    into = _receivers(anatomy, stack, [receivers] if isinstance(receivers, str) else list(receivers))
    out = _senders(anatomy, [senders] if isinstance(senders, str) else list(senders), into)
    old, new = (model.run(i, record=Writes.sites(anatomy, stack)) for i in (x, y))
    where = None if positions is None else tower_inputs(x, Site(stack.name, None, "embed")).mask(positions).cpu()
    reads = reads_of(metric, x, old["logits"])
    judge = Judge(metric, x, classes=old["logits"].ndim == 2)
    plain = judge(reads.of(old["logits"]))
    chain = Chain(model.module, anatomy, stack, model.called_with(x.kwargs), family=model.family)
    paths = Paths(chain, old, new, where, freeze, ln)
    if freeze == "all":
        paths.base.check()
    if into[0].component == "logits":
        values, floor = _into_logits(model, x, paths, out, reads, judge)
    else:
        values, floor = _into_receivers(model, x, paths, out, _together(into), reads, judge)
    return Effects(
        sites=tuple(map(str, out)), positions=None, values=values.cpu(), base=plain.cpu(),
        source=judge(reads.of(new["logits"])).cpu(), noise_floor=floor,
        meta={**old.meta, "method": "path patching", "corruption": "run", "direction": "source into base",
              "freeze": freeze, "ln": ln, "receivers": [str(site) for site in into], "metric": metric_name(metric)},
    )  # fmt: skip


def _into_logits(
    model: Model, x: Inputs, paths: Paths, out: Sequence[Site], reads: Reads, judge: Judge
) -> tuple[Tensor, float]:
    """Effects [sender, example], and how far the base's own last residual is from its run by the same way."""
    chain = paths.chain
    tail = Tail(model.module, chain.tower, model.called_with(x.kwargs), left=chain.left, logits=paths.old["logits"])
    how: How = "final" if paths.ln == "recompute" else "frozen"

    def answer(left: Tensor) -> Tensor:
        with torch.no_grad():
            return judge(tail.logits(tail.normed(left, how), reads)).double()

    unchanged = answer(chain.left)
    groups = (paths.lefts(out[low : low + TOGETHER]) for low in range(0, len(out), TOGETHER))
    moved = [
        torch.zeros_like(unchanged) if torch.equal(left, chain.left) else answer(left) - unchanged
        for group in groups
        for left in group
    ]
    plain = judge(reads.of(paths.old["logits"])).double()
    return torch.stack(moved), max(float((one - plain).abs().max()) for one in (unchanged, answer(paths.unmoved())))


def _into_receivers(
    model: Model, x: Inputs, paths: Paths, out: Sequence[Site], into: Sequence[Site], reads: Reads, judge: Judge
) -> tuple[Tensor, float]:
    """The same with what the receivers read put into free base runs, some senders at a time."""
    sweep = Sweep(model.module, model.anatomy, x, model.called_with(x.kwargs), family=model.family)
    values, floor = torch.zeros(len(out), x.batch, dtype=torch.float64), 0.0
    plain = judge(reads.of(paths.old["logits"])).double()
    for low in range(0, len(out), TOGETHER):
        for answer in sweep.run(paths.cells(out[low : low + TOGETHER], into), reads):
            unchanged = judge(answer.unchanged).double()
            floor = max(floor, float((unchanged - plain).abs().max()))
            gap = (judge(answer.logits).double() - unchanged).cpu()
            values[low + answer.number] = torch.where(answer.changed, gap, 0.0)
    return values, floor


def _together(into: Sequence[Site]) -> list[Site]:
    """Receivers of one layer and kind as one site with several heads."""
    heads: dict[Site, list[int]] = defaultdict(list)
    for site in into:
        heads[site.whole].extend(site.heads or ())
    return [replace(whole, heads=tuple(some) if some else None) for whole, some in heads.items()]


def _option(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise SiteError(f"{name} is {' or '.join(map(repr, known))}, got {given!r}.")


def _receivers(anatomy: Anatomy, stack: Tower, spelled: Sequence[str]) -> list[Site]:
    """One site per receiver, heads apart."""
    found: list[Site] = []
    for text in spelled:
        for site in anatomy.sites(text):
            if site.component not in (*READS, "logits"):
                raise SiteError(f"{text!r} reads nothing by a path: receivers are {', '.join(READS)} and logits.")
            if site.layer is None:
                found.append(site)
                continue
            if anatomy.tower(site.tower, text=text) is not stack:
                raise SiteError(f"{text!r}: paths are followed in the tower {stack.name!r}, which makes the logits.")
            if site.component == "mlp_in":
                found.append(site)
                continue
            layer = anatomy.layer(site)
            if site.query_heads and layer.group > 1:
                raise SiteError(
                    f"{text!r}: {site.component[0]} belongs to kv heads that {layer.group} query heads share; name the"
                    f" kv head, such as 'L{site.layer}.K{(site.heads or (0,))[0] // layer.group}.{site.component}'."
                )
            heads = site.heads or range(layer.head_count(site.component))
            found += [Site(site.tower, site.layer, site.component, (head,)) for head in heads]
    if not found:
        raise SiteError("no receivers were named: write receivers='logits' or 'L9.H6.q_in', for example.")
    if len(found) > 1 and any(site.component == "logits" for site in found):
        raise SiteError("the logits are the end of every path: name them as the only receiver, or others without them.")
    return list(dict.fromkeys(found))


def _senders(anatomy: Anatomy, spelled: Sequence[str], into: Sequence[Site]) -> list[Site]:
    found: list[Site] = []
    for text in spelled:
        mine = [one for site in anatomy.sites(text) for one in _apart(anatomy, site, text)]
        first = [site for site in mine if any(before(anatomy, site, receiver) for receiver in into)]
        if not first or (len(first) < len(mine) and "*" not in text):
            late = next(site for site in mine if site not in first)
            raise SiteError(
                f"{late} does not come before {', '.join(map(str, into))}, so no path leads from it to there."
            )
        found += first
    if not found:
        raise SiteError("no senders were named: write senders='L*.H*', for example.")
    return list(dict.fromkeys(found))


def _apart(anatomy: Anatomy, site: Site, text: str) -> list[Site]:
    """A pattern of heads as one site per head."""
    if site.component in ("attention", "z", "result"):
        heads = site.heads or range(anatomy.layer(site).heads)
        return [Site(site.tower, site.layer, "result", (head,)) for head in heads]
    if site.component in ("mlp_write", "embed"):
        return [site]
    raise SiteError(f"{text!r} is no sender: senders are heads ('L*.H*'), 'L*.mlp_write' and 'embed'.")


register(
    Method(
        "interp.path_patch",
        number="effect on the metric of what a sender writes straight into the receivers, patched minus base",
        shown="map",
        needs=("metric", "source"),
        passes=lambda t: 4 + 1.5 * t.count / t.layers,
        example=lambda t: path_patch(
            t.model, base=t.base, source=t.source, metric=t.metric, senders=f"{t.tower}L0.H*",
            receivers=f"{t.tower}L1.H0.q_in",
        ),
    )
)  # fmt: skip
