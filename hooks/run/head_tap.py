"""A session at one attention: its edits of q, k, v, z and of the pattern, and what it records there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.anatomy.towers import Layer
from interp.hooks.edits.edits import AttentionEdit, CallEdit, Place
from interp.hooks.edits.placing import Placed
from interp.hooks.edits.route import RouteHeads, ValueChange
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.tape import select
from interp.hooks.sites import Site
from interp.hooks.stand.attention import Dense, HeadKV, pattern_of
from interp.hooks.stand.interface import BorderTap, Call

if TYPE_CHECKING:
    from interp.hooks.run.session import Session


class HeadTap(BorderTap):
    """The tap of one layer's attention."""

    def __init__(self, session: Session, layer: Layer, edits: list[Placed], sites: list[Site]) -> None:
        self.session, self.layer, self.edits, self.sites = session, layer, edits, sites

    def live(self) -> bool:
        return self.session.live()

    @property
    def cross(self) -> bool:
        """Whether the keys here are another tower's."""
        return self.layer.kind == "cross"

    @property
    def differentiable(self) -> bool:
        return self.session.wish.grad

    def before(self, call: Call) -> None:
        for name in ("q", "k", "v"):
            value = getattr(call, name).transpose(1, 2)
            new = self.border(name, value)
            if new is not value or self.differentiable:
                setattr(call, name, new.transpose(1, 2))

    def border(self, component: str, value: Tensor) -> Tensor:
        """q, k or v [b, position, head, d] after this session's edits, recorded."""
        for placed in self._value_edits(component):
            if not (placed.edit.expand and placed.site.query_heads):
                value = self.session.changed(placed, value)
        for site in (s for s in self.sites if s.component == component):
            value = self._record(site, value)
        return value

    def _value_edits(self, component: str) -> list[Placed]:
        return [p for p in self.edits if p.site.component == component]

    def _record(self, site: Site, value: Tensor) -> Tensor:
        return self.session.record_heads(site, value)

    def attention_edits(self, call: Call) -> list[Any]:
        session, found = self.session, []
        for placed in self.edits:
            edit, site = placed.edit, placed.site
            if not session.moment.applies(edit):
                continue
            if isinstance(edit, AttentionEdit):
                if (resolved := self._resolved(edit, site, call)) is not None:
                    session.note(placed)
                    found.extend(resolved)
            elif site.component in ("pattern", "scores"):
                found.append(
                    Dense(site.component, site.heads or tuple(range(self.layer.heads)), partial(self._dense, placed))
                )
            elif edit.expand and site.query_heads and site.heads is not None:
                found.append(HeadKV(site.component, site.heads, partial(session.changed, Placed(edit, site.whole))))
        return found

    def _resolved(self, edit: AttentionEdit, site: Site, call: Call) -> list[Any] | None:
        """The edit in the kernels' terms; None where it touches no row now."""
        moment, device = self.session.moment, call.q.device
        rows = moment.where(edit, site, call.q.shape[0], call.q.shape[2], device, keys=False, cross=self.cross)
        if rows is not None and not bool(rows.any()):
            return None
        if isinstance(edit, CallEdit):
            return edit.of_call(call, self._place(site, call, rows))
        keys = {name: self._keys(spec, site, call).to(device) for name, spec in edit.key_sets().items()}
        return [edit.kernel(site.heads, rows, keys)]

    def _place(self, site: Site, call: Call, rows: Tensor | None) -> Place:
        moment, (batch, heads, queries, _) = self.session.moment, call.q.shape
        real = moment.valid(site, batch, queries, cross=self.cross)
        first = moment.first_key(site, call.k.shape[2], cross=self.cross)
        return Place(site.heads or tuple(range(heads)), rows, real, first.to(call.q.device))

    def _keys(self, spec: Positions, site: Site, call: Call) -> Tensor:
        return self.session.moment.keys(spec, site, call.k.shape[2], cross=self.cross)

    def _dense(self, placed: Placed, weights: Tensor) -> Tensor:
        return self.session.changed(Placed(placed.edit, placed.site.whole), weights, axis=2)

    def after(self, call: Call) -> None:
        for placed in self._value_edits("z"):
            call.z = self.session.changed(placed, call.z, change=self._routed(placed, call))

    def _routed(self, placed: Placed, call: Call) -> ValueChange | None:
        """The change of an edit of z that reads the queries too."""
        edit, heads = placed.edit, self.layer.heads_of(placed.site)
        if not isinstance(edit, RouteHeads) or call.q.ndim != 4:
            return None
        q = call.q.transpose(1, 2)[:, :, list(heads)]
        return lambda z, valid: edit.routed(z, q, heads)

    def record(self, call: Call) -> None:
        for site in self.sites:
            if site.component == "z":
                call.z = self._record(site, call.z)
            elif site.component in ("pattern", "scores"):
                self._record_pattern(call, site)

    def _record_pattern(self, call: Call, site: Site) -> None:
        wish, moment = self.session.wish, self.session.moment
        rows = None if wish.positions is None else moment.mask(wish.positions, site, call.q.shape[2])
        value = pattern_of(call, site.component, site.heads, rows, call.edits)
        if wish.keys is not None:
            value = select(value, self._keys(wish.keys, site, call).to(value.device), axis=3)
        self.session.keep(site, call.z, value)
