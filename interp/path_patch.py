"""Path patching: how much of a head's effect goes from a sender straight into a receiver.

Wang et al. 2022 (IOI, arXiv 2211.00593) and Goldowsky-Dill et al. 2023 (arXiv 2304.05969). The sender takes its value
from the source run while everything between it and the receiver is frozen to the base run; what the receiver then reads
is put into it in an otherwise free base run, and `effect = metric(patched) - metric(base)`. `freeze="heads"` freezes
all attention and recomputes the MLPs in between (IOI), `freeze="all"` freezes those too: then the receiver's residual
is `resid(base) + write(source) - write(base)`, and no pass is needed to build it. The norm in front of the receiver
(and, with `freeze="all"`, one behind the sender) is recomputed, or held at the base's scale with `ln="freeze"`: then
what the receiver reads is a sum over senders. Cost: two recorded passes, then per sender the blocks between it and the
receiver (none with `freeze="all"`) and one pass, which the logits as receiver do not need. Senders that change nothing
have an effect of exactly 0. Limits: towers whose blocks can be run one by one; several receivers are patched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.effects import Effects
from interp.hooks.anatomy import Anatomy
from interp.hooks.chain import Chain
from interp.hooks.edits import Set
from interp.hooks.errors import SiteError
from interp.hooks.inputs import Inputs, Positions
from interp.hooks.output import logits_of
from interp.hooks.session import Session
from interp.hooks.sites import Site
from interp.hooks.tail import Tail, last_tower
from interp.hooks.tape import Tape, tower_inputs
from interp.hooks.writes import Writes
from interp.judge import Judge, Metric, lined_up, picked, reads_of

if TYPE_CHECKING:
    from interp.hooks.sweep import Reads
    from interp.model import Model

Freeze = Literal["heads", "all"]
Norms = Literal["recompute", "freeze"]
READS = {"q_in": "q", "k_in": "k", "v_in": "v", "mlp_in": "mlp_in"}
"""What is put into a receiver in the last run."""


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
    into = _receivers(anatomy, [receivers] if isinstance(receivers, str) else list(receivers))
    out = _senders(anatomy, [senders] if isinstance(senders, str) else list(senders), into)
    old, new = (model.run(i, record=Writes.sites(anatomy, stack)) for i in (x, y))
    where = None if positions is None else tower_inputs(x, Site(stack.name, None, "embed")).mask(positions).cpu()
    reads = reads_of(metric, x, old["logits"])
    judge = Judge(metric, x, classes=old["logits"].ndim == 2)
    chain = Chain(model.module, anatomy, stack, model.called_with(x.kwargs), family=model.family)
    runs = _Runs(model, x, chain, (old, new), where, (freeze, ln), reads)
    plain = judge(picked(old["logits"], reads))
    unchanged = judge(runs.through(into, {}))
    values = torch.stack([_effect(runs, sender, into, judge, unchanged) for sender in out])
    return Effects(
        sites=tuple(map(str, out)), positions=None, values=values.cpu(), base=plain.cpu(),
        source=judge(picked(new["logits"], reads)).cpu(), noise_floor=float((unchanged - plain).abs().max()),
        meta={**old.meta, "method": "path patching", "direction": "source into base", "freeze": freeze, "ln": ln,
              "receivers": [str(site) for site in into], "metric": repr(metric)},
    )  # fmt: skip


def _option(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise SiteError(f"{name} is {' or '.join(map(repr, known))}, got {given!r}.")


def _receivers(anatomy: Anatomy, spelled: Sequence[str]) -> list[Site]:
    """One site per receiver, heads apart."""
    found: list[Site] = []
    for text in spelled:
        for site in anatomy.sites(text):
            if site.component not in (*READS, "logits"):
                raise SiteError(f"{text!r} reads nothing by a path: receivers are {', '.join(READS)} and logits.")
            if site.layer is None or site.component == "mlp_in":
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
        first = [site for site in mine if any(_before(anatomy, site, receiver) for receiver in into)]
        if not first or (len(first) < len(mine) and "*" not in text):
            late = next(site for site in mine if site not in first)
            raise SiteError(f"{late} does not come before {', '.join(map(str, into))}: no path leads from it to there.")
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


def _before(anatomy: Anatomy, sender: Site, receiver: Site) -> bool:
    if receiver.layer is None or sender.layer is None:
        return True
    if sender.tower != receiver.tower:
        return False
    within = receiver.component == "mlp_in" and "resid_mid" in anatomy.layer(receiver).ports
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and sender.heads is not None and within)


def _effect(runs: _Runs, sender: Site, into: Sequence[Site], judge: Judge, unchanged: Tensor) -> Tensor:
    moved = runs.inputs(sender, into)
    if not moved:
        return torch.zeros_like(unchanged, dtype=torch.float64)
    return (judge(runs.through(into, moved)) - unchanged).double()


class _Runs:
    """The base run with one sender moved, up to the receivers, and from the receivers on."""

    def __init__(
        self,
        model: Model,
        x: Inputs,
        chain: Chain,
        tapes: tuple[Tape, Tape],
        where: Tensor | None,
        how: tuple[Freeze, Norms],
        reads: Reads,
    ) -> None:
        self.model, self.x, self.chain, self.where, self.reads = model, x, chain, where, reads
        self.freeze, self.ln = how
        self.kwargs = model.called_with(x.kwargs)
        (self.old, self.new) = tapes
        self.before, self.after = (Writes(model.module, tape, chain.tower) for tape in tapes)
        self.tail = Tail(model.module, chain.tower, self.kwargs, left=chain.left, logits=self.old["logits"])

    def inputs(self, sender: Site, into: Sequence[Site]) -> dict[Site, Tensor]:
        """What each receiver reads once the sender has moved; nothing where that is what it reads anyway."""
        moved = self._all(sender, into) if self.freeze == "all" else self._heads(sender, into)
        return {} if all(torch.equal(value, self._base(site)) for site, value in moved.items()) else moved

    def through(self, into: Sequence[Site], moved: dict[Site, Tensor]) -> Tensor:
        """The logits that are read when the receivers read this (by default what they read anyway)."""
        values = {site: moved.get(site, self._base(site)) for site in into}
        if into[0].component == "logits":
            return self._answer(values[into[0]])
        edits = [Set(str(Site(s.tower, s.layer, READS[s.component], s.heads)), v) for s, v in values.items()]
        with Session(self.model.module, self.chain.anatomy, edits=edits, family=self.model.family), torch.no_grad():
            logits = logits_of(self.model.module(**self.kwargs))
        assert logits is not None
        return picked(logits, self.reads)

    def _answer(self, left: Tensor) -> Tensor:
        with torch.no_grad():
            normed = self.tail.normed(left, "final" if self.ln == "recompute" else "frozen")
            return self.tail.logits(normed, self.reads)

    def _base(self, site: Site) -> Tensor:
        if site.component == "logits":
            return self.chain.left
        assert site.layer is not None
        return _head(site, self.chain.plain(site.layer, READS[site.component]))

    def _all(self, sender: Site, into: Sequence[Site]) -> dict[Site, Tensor]:
        more = self._more(sender).to(self.chain.left.dtype)
        found = {}
        for site in into:
            if site.component == "logits":
                found[site] = self.chain.left + more
            elif _before(self.chain.anatomy, sender, site):
                found[site] = self._read(site, self.chain.entered(site), more)
        return found

    def _more(self, sender: Site) -> Tensor:
        """What the sender writes more in the source run [b, position, d]."""
        if sender.heads is None:
            more = self.new[sender].double() - self.old[sender].double()
        else:
            results = (w.results(sender, sender.heads)[:, :, 0] for w in (self.after, self.before))
            more = next(results) - next(results)
        more = more if self.where is None else more * self.where[..., None].to(more.device)
        if sender.heads is None:
            return more
        carry = self.before.carry(sender)
        if self.ln == "freeze":
            return carry.linear(more)
        out, write = (self.old[Site(sender.tower, sender.layer, c)] for c in ("attn_out", "attn_write"))
        with torch.no_grad():
            return carry.exact((out.reshape(write.shape).double() + more).to(write.dtype)).double() - write.double()

    def _read(self, site: Site, entered: Tensor, more: Tensor) -> Tensor:
        """What a receiver takes from its residual and `more` on top of it."""
        assert site.layer is not None
        component = READS[site.component]
        if self.ln == "recompute":
            return _head(site, self.chain.read(site.layer, component, entered + more))
        return _head(site, self.chain.read_held(site.layer, component, more))

    def _heads(self, sender: Site, into: Sequence[Site]) -> dict[Site, Tensor]:
        """The blocks above the sender driven with all attention frozen, receivers read on the way."""
        found: dict[Site, Tensor] = {}
        end = max((site.layer for site in into if site.layer is not None), default=None)
        end = self.chain.last if any(site.layer is None for site in into) else end
        for layer, hidden, edits in self._climb(sender, end):
            for site in into:
                if site.layer == layer and _before(self.chain.anatomy, sender, site):
                    found[site] = self._driven(site, hidden, edits)
        if into[0].component == "logits":
            found[into[0]] = self._top
        return found

    def _driven(self, site: Site, hidden: Tensor, edits: Sequence[Set]) -> Tensor:
        assert site.layer is not None
        component = READS[site.component]
        if self.ln == "recompute":
            return _head(site, self.chain.read(site.layer, component, hidden, edits=edits))
        reads = self.chain.reads_from(site.layer, component)
        there = hidden if reads == "resid_pre" else self.chain.read(site.layer, reads, hidden, edits=edits)
        return _head(site, self.chain.read_held(site.layer, component, there - self.chain.plain(site.layer, reads)))

    def _climb(self, sender: Site, end: int | None) -> Any:
        """Each layer from the sender's on with its residual and the edits that move the sender there."""
        start = self.chain.first if sender.layer is None else sender.layer
        hidden = self.chain.plain(start, "resid_pre") if sender.layer is not None else self._moved(sender)
        for layer in self.chain.layers:
            if layer < start or (end is not None and layer > end):
                continue
            edits = [self._edit(sender)] if layer == sender.layer else []
            yield layer, hidden, edits
            hidden = self.chain.run(layer, hidden, edits=edits)
        self._top = hidden

    def _edit(self, sender: Site) -> Set:
        site = sender if sender.heads is None else Site(sender.tower, sender.layer, "z", sender.heads)
        return Set(str(site), self._moved(site))

    def _moved(self, site: Site) -> Tensor:
        old, new = self.old[site], self.new[site]
        if self.where is None:
            return new
        where = self.where.to(new.device)
        return torch.where(where.view(*where.shape, *[1] * (new.ndim - 2)), new, old)


def _head(site: Site, value: Tensor) -> Tensor:
    return value if site.heads is None else value[:, :, list(site.heads)]
