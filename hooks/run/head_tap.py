"""One run at one attention: its edits of q, k, v, z and of how heads attend, and what it records there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from interp.hooks.anatomy.towers import Layer
from interp.hooks.edits.edits import AttentionEdit, Place, ValueEdit
from interp.hooks.edits.placing import Placed
from interp.hooks.errors import ModelError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.editor import Editor
from interp.hooks.run.keeper import Keeper
from interp.hooks.run.tape import select
from interp.hooks.sites import Site
from interp.hooks.stand.attention import pattern_of
from interp.hooks.stand.call import BorderTap, Call
from interp.hooks.stand.program import HeadProgram, Recurrent, Standing
from interp.hooks.stand.softmax import Changes, Numbers, OwnKV, program
from interp.hooks.states import States


class HeadTap(BorderTap):
    """The tap of one layer's attention."""

    def __init__(
        self,
        layer: Layer,
        edits: Sequence[Placed],
        sites: Sequence[Site],
        *,
        editor: Editor,
        keeper: Keeper,
        states: States,
        live: Callable[[], bool],
        inputs: Callable[[], Tensor] | None = None,
    ) -> None:
        self.layer, self.edits, self.sites, self.states = layer, edits, sites, states
        self.editor, self.keeper, self.moment, self._is_live = editor, keeper, editor.moment, live
        self.inputs = inputs

    def live(self) -> bool:
        return self._is_live()

    @property
    def cross(self) -> bool:
        """Whether the keys here are another tower's."""
        return self.layer.kind == "cross"

    @property
    def differentiable(self) -> bool:
        return self.keeper.wish.grad

    def _all_rows(self, call: Call) -> None:
        """Mochi attends to one row of the batch at a time, each with its own words."""
        rows = self.moment.rows()
        if self.layer.readers and self.layer.nth is None and rows is not None and call.q.shape[0] < rows:
            raise ModelError(
                f"{self.layer.attention} attends to {call.q.shape[0]} of {rows} rows at a time, so a recording or an"
                " edit there would be that of one row and not of all rows: run one row at a time."
            )

    def before(self, call: Call) -> None:
        self._all_rows(call)
        for name in ("q", "k", "v"):
            value = getattr(call, name).transpose(1, 2)
            new = self.border(name, value)
            if new is not value or self.differentiable:
                setattr(call, name, new.transpose(1, 2))

    def border(self, component: str, value: Tensor) -> Tensor:
        """q, k or v [b, position, head, d] after this run's edits, recorded."""
        for placed in self._value_edits(component):
            if not _of_one_head(placed):
                value = self.editor.changed(placed, value)
        for site in (s for s in self.sites if s.component == component):
            value = self.keeper.keep_heads(site, value)
        return value

    def _value_edits(self, component: str) -> list[Placed]:
        return [p for p in self.edits if p.site.component == component]

    def programs(self, call: Call) -> list[Standing]:
        found: list[Standing] = []
        for placed in self.edits:
            if self.moment.applies(placed.edit):
                if isinstance(placed.edit, AttentionEdit):
                    found += self._attending(placed, placed.edit, call)
                elif placed.site.component in ("pattern", "scores"):
                    found += self._numbered(placed, call)
                elif _of_one_head(placed):
                    found.append(self._own_kv(placed))
        return found

    def _attending(self, placed: Placed, edit: AttentionEdit, call: Call) -> list[Standing]:
        """An edit of how heads attend; none where it touches no row now."""
        rows = self._rows(placed, call)
        if rows is not None and not bool(rows.any()):
            return []
        note = partial(self.editor.note, placed)
        found = edit.programs(call, self._place(placed.site, call, rows))
        if not found:
            note()  # it saw the call and had no change to make
        return [Standing(self._carried(one, (id(placed), n), call), heads, repr(edit), rows, note)
                for n, (heads, one) in enumerate(found)]  # fmt: skip

    def _carried(self, program: HeadProgram, name: tuple[int, int], call: Call) -> HeadProgram:
        """The program with the state that it keeps while the model generates, where it has one."""
        if not (self.moment.offset and isinstance(program, Recurrent)):
            return program
        carried = self.states.carried(program, name, call, self.moment.cache, new=0 if self.cross else 1)
        return program if carried is None else carried

    def _numbered(self, placed: Placed, call: Call) -> list[Standing]:
        """An edit of the numbers of a pattern, which notes itself when it changes them."""
        rows = self._rows(placed, call)
        if rows is not None and not bool(rows.any()):
            return []
        heads = placed.site.heads or tuple(range(self.layer.heads))
        change = Numbers(placed.site.component, heads, partial(self._dense, placed))
        return [Standing(program(Changes(numbers=(change,))), heads, repr(placed.edit), rows)]

    def _own_kv(self, placed: Placed) -> Standing:
        """An edit of the k or v that one query head reads."""
        heads = placed.site.heads
        assert heads is not None
        change = partial(self.editor.changed, replace(placed, site=placed.site.whole))
        changes = Changes(own=(OwnKV(placed.site.component, heads, change),))
        return Standing(program(changes), heads, repr(placed.edit))

    def _rows(self, placed: Placed, call: Call) -> Tensor | None:
        """Bool [b, query] that an edit touches now; None for all."""
        batch, queries = call.q.shape[0], call.q.shape[2]
        device = call.q.device
        return self.moment.where(placed.edit, placed.site, batch, queries, device, keys=False, cross=self.cross)

    def _place(self, site: Site, call: Call, rows: Tensor | None) -> Place:
        (batch, heads, queries, _), device = call.q.shape, call.q.device
        return Place(
            site.heads or tuple(range(heads)),
            rows,
            keys=lambda spec: self._keys(spec, site, call).to(device),
            real=lambda: self.moment.valid(site, batch, queries, cross=self.cross),
            first=lambda: self.moment.first_key(site, call.k.shape[2], cross=self.cross).to(device),
            cross=self.cross,
            cached=self.moment.offset > 0,
        )

    def _keys(self, spec: Positions, site: Site, call: Call) -> Tensor:
        return self.moment.keys(spec, site, call.k.shape[2], cross=self.cross)

    def _dense(self, placed: Placed, weights: Tensor) -> Tensor:
        return self.editor.changed(replace(placed, site=placed.site.whole), weights, axis=2)

    def after(self, call: Call) -> None:
        heads_of = self.layer.heads_of
        call.x = None if self.inputs is None else self.inputs()
        for placed in self._value_edits("z"):
            assert isinstance(placed.edit, ValueEdit)
            change = placed.edit.change_in(call, heads_of(placed.site))
            call.z = self.editor.changed(placed, call.z, change=change)

    def record(self, call: Call) -> None:
        for site in self.sites:
            if site.component == "z":
                call.z = self.keeper.keep_heads(site, call.z)
            elif site.component in ("pattern", "scores") and self.keeper.wanted:
                self._record_pattern(call, site)

    def _record_pattern(self, call: Call, site: Site) -> None:
        wish, moment = self.keeper.wish, self.moment
        rows = None if wish.positions is None else moment.mask(wish.positions, site, call.q.shape[2])
        value = pattern_of(call, site.component, self.keeper.heads(site), rows)
        if wish.keys is not None:
            value = select(value, self._keys(wish.keys, site, call).to(value.device), axis=3)
        self.keeper.keep(site, call.z, value)


def _of_one_head(placed: Placed) -> bool:
    """Whether an edit of k or v is of what a single query head reads."""
    return placed.edit.expand and placed.site.query_heads and placed.site.heads is not None
