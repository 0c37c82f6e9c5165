"""One owner of everything that is put on a model: it stands at the sites, edits, records, and takes itself off again.

A session is entered before a run and left after it, whatever happens in between. It belongs to the thread that
entered it unless told otherwise, so that two threads can look into one model at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.spread import here
from interp.hooks.anatomy.towers import Anatomy, Layer, Nth, Port
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.denoisers.calls import denoises
from interp.hooks.denoisers.direct import through_the_module
from interp.hooks.denoisers.guidance import branches, listen
from interp.hooks.edits.edits import Edit, ValueEdit, several
from interp.hooks.edits.placing import Placed, placed_here, places
from interp.hooks.errors import EditError, SiteError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.editor import Editor
from interp.hooks.run.head_tap import HeadTap
from interp.hooks.run.keeper import Keeper, Wish
from interp.hooks.run.moment import Moment
from interp.hooks.sites import CALL, Site
from interp.hooks.stand.output import logits_key, with_logits
from interp.hooks.stand.ports import head_results, stand_at
from interp.hooks.stand.standpoints import watch_border
from interp.hooks.states import States

READS_RESIDUAL = {"q_in": "resid_pre", "k_in": "resid_pre", "v_in": "resid_pre"}


_FOR_ALL: weakref.WeakKeyDictionary[nn.Module, list[Session]] = weakref.WeakKeyDictionary()
"""By module, the sessions that are on for whoever calls it."""


def edits_on(root: nn.Module) -> list[Edit]:
    """The edits that any code which calls the module runs under now."""
    return list(dict.fromkeys(placed.edit for session in _FOR_ALL.get(root, ()) for placed in session.edits))


class Session:
    """What is on a model during one run."""

    def __init__(
        self,
        root: nn.Module,
        anatomy: Anatomy,
        *,
        edits: Edit | Iterable[Edit] = (),
        wish: Wish | None = None,
        inputs: Inputs | None = None,
        family: Family | None = None,
        all_threads: bool = False,
        describe: Callable[[Mapping[str, Any]], Inputs] | None = None,
    ) -> None:
        self.root, self.anatomy, self.family = root, anatomy, family
        self.moment = Moment(inputs, describe, partial(branches, root) if denoises(root) else None)
        self.edits = [Placed(edit, site) for edit in several(edits) for site in places(anatomy, edit)]
        self.here = here(anatomy)
        """As this process' attention calls have it, where heads are in several."""
        self._placed = [one for placed in self.edits if (one := placed_here(anatomy, placed)) is not None]
        self.editor = Editor(self.here, self._placed, self.moment)
        self.wish = wish or Wish()
        self.keeper = Keeper(anatomy, self.wish, self.moment)
        self.states = States()
        self._thread = None if all_threads else threading.get_ident()
        self._undo = ExitStack()
        self._on_model = False
        self.ran = False
        """Whether the model has run since."""

    def __enter__(self) -> Session:
        self._on_model = True
        with ExitStack() as undo:
            undo.callback(self.close)
            self._stand()
            undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        if exc[0] is not None:
            self.keeper.pieces.clear()

    def close(self) -> None:
        """Take everything off; harmless a second time."""
        self._on_model = False
        self.states.clear()
        self._undo.close()

    def live(self) -> bool:
        """Whether the session is on, for the current thread."""
        return self._on_model and self._thread in (None, threading.get_ident())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While inside, the model runs as if the session were off."""
        was, self._on_model = self._on_model, False
        try:
            yield
        finally:
            self._on_model = was

    @property
    def pieces(self) -> MutableMapping[Site, list[Tensor]]:
        """What was recorded so far, call by call."""
        return self.keeper.pieces

    def __repr__(self) -> str:
        return f"Session({len(self.edits)} edits, {len(self.wish.sites)} sites recorded)"

    def _stand(self) -> None:
        self._undo.enter_context(forced_eager())
        if denoises(self.root):
            self._undo.callback(listen(self.root))
        self._undo.callback(through_the_module(self.root))
        if self._thread is None:
            _FOR_ALL.setdefault(self.root, []).append(self)
            self._undo.callback(_FOR_ALL[self.root].remove, self)
        self._on(self.root.register_forward_pre_hook(self._root_begins, with_kwargs=True, prepend=True))
        for members in self._by_attention().values():
            self._stand_at_heads(members)
        for placed in self._placed:
            self._stand_to_edit(placed)
        for site in self.wish.sites:
            self._stand_to_record(site)

    def _on(self, handle: Any) -> None:
        self._undo.callback(handle.remove)

    def _root_begins(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.live():
            self.ran = True
            self.moment.begin(args, kwargs)
            self.states.begin(self.moment.cache)

    def _by_attention(self) -> dict[tuple[str, Nth | None], tuple[Layer, list[Placed], list[Site]]]:
        found: dict[tuple[str, Nth | None], tuple[Layer, list[Placed], list[Site]]] = {}
        for placed in self._placed:
            if self._in_call(placed.site):
                layer = self.here.layer(placed.site)
                found.setdefault((layer.attention, layer.nth), (layer, [], []))[1].append(placed)
        for site in self.wish.sites:
            if self._in_call(site):
                layer = self.here.layer(site)
                found.setdefault((layer.attention, layer.nth), (layer, [], []))[2].append(site)
        return found

    def _in_call(self, site: Site) -> bool:
        """Whether the site is part of the attention call, as z is unless a gate is behind it."""
        return site.component in CALL and not (site.component == "z" and self.anatomy.layer(site).gated)

    def _stand_at_heads(self, members: tuple[Layer, list[Placed], list[Site]]) -> None:
        layer, edits, sites = members
        inputs = self._inputs_kept(edits)
        tap = HeadTap(layer, edits, sites, editor=self.editor, keeper=self.keeper, states=self.states, live=self.live,
                      inputs=inputs)  # fmt: skip
        self._undo.callback(watch_border(self.root, layer, self.family, tap))

    def _inputs_kept(self, edits: list[Placed]) -> Callable[[], Tensor] | None:
        """What the attention of a layer has read last, where one of its edits asks for it."""
        asking = next((p for p in edits if isinstance(p.edit, ValueEdit) and p.edit.reads_input), None)
        if asking is None:
            return None
        kept = _Kept()
        self._at(self._port(replace(asking.site.whole, component="attn_in")), partial(_keep, kept))
        return lambda: kept.value

    def _stand_to_edit(self, placed: Placed) -> None:
        site = placed.site
        if self._in_call(site):
            return
        if site.component == "z":
            self._at(self._port(site), partial(self._edit_gated, placed))
            return
        if site.component == "result":
            self._at(self._port(site), partial(self._edit_results, placed), with_input=self.anatomy.layer(site))
            return
        if site.component in READS_RESIDUAL:
            raise EditError(
                f"{site.component!r} is what a head reads, for path methods; edit {READS_RESIDUAL[site.component]!r}"
                " or 'attn_in' instead."
            )
        self._at(self._port(site), partial(self.editor.changed, placed))

    def _stand_to_record(self, site: Site) -> None:
        if self._in_call(site):
            return
        if site.component == "z":
            self._at(self._port(site), partial(self._record_gated, site))
            return
        if site.component == "result":
            layer = self.here.layer(site)
            out = layer.projection
            if out is None:
                raise SiteError(f"{site}: the output projection of this layer was not found.")
            self._at(Port(out, "in", 0, nth=layer.nth), partial(self._record_results, site, layer))
            return
        self._at(self._port(site), partial(self._record_value, site))

    def _port(self, site: Site) -> Port:
        if site.component == "logits":
            return Port("", "out")
        if site.component == "out":
            assert self.anatomy.connector is not None
            return self.anatomy.connector
        tower = self.anatomy.tower(site.tower, text=str(site))
        if site.component == "embed":
            first = tower.layer(min(tower.by_index))
            if "resid_pre" not in first.ports:
                raise SiteError(f"{site}: {first.missing.get('resid_pre', 'no such tensor was found')}.")
            return first.ports["resid_pre"]
        if site.component == "final_norm":
            if tower.final_norm is None:
                raise SiteError(f"the tower {tower.name!r} has no norm after its last layer.")
            return tower.final_norm
        layer = self.anatomy.layer(site)
        component = READS_RESIDUAL.get(site.component, "attn_out" if site.component == "result" else site.component)
        if component not in layer.ports:
            why = layer.missing.get(component, "no such tensor was found in its block")
            raise SiteError(f"{tower.name} layer {layer.index} has no {component}: {why}.")
        return layer.ports[component]

    def _at(self, port: Port, change: Callable[..., Tensor], *, with_input: Layer | None = None) -> None:
        if with_input is not None:
            kept = _Kept()
            assert with_input.projection is not None
            self._at(Port(with_input.projection, "in", 0, nth=with_input.nth), partial(_keep, kept))
            self._at(port, lambda x: change(x, self._by_head(kept.value, with_input), with_input))
            return
        if port.minus is not None:
            before = _Kept()
            self._at(port.minus, partial(_keep, before))
            inner = change
            change = lambda x: _unless_same(x, inner, before)  # noqa: E731
        if port.module == "" and port.key is None:
            self._on(self.root.register_forward_hook(partial(_logits_hook, self, change)))
            return
        self._on(stand_at(self.root, port, change, batch=self.moment.rows, live=self.live))

    @staticmethod
    def _by_head(z: Tensor, layer: Layer) -> Tensor:
        return z.unflatten(-1, (layer.heads, layer.d_value))

    def _edit_gated(self, placed: Placed, x: Tensor) -> Tensor:
        z = self._by_head(x, self.here.layer(placed.site))
        new = self.editor.changed(placed, z)
        return x if new is z else new.flatten(-2)

    def _record_gated(self, site: Site, x: Tensor) -> Tensor:
        z = self._by_head(x, self.here.layer(site))
        new = self.keeper.keep_heads(site, z)
        return x if new is z and not self.wish.grad else new.flatten(-2)

    def _edit_results(self, placed: Placed, x: Tensor, z: Tensor, layer: Layer) -> Tensor:
        assert layer.projection is not None
        heads = placed.site.heads or tuple(range(layer.heads))
        old = head_results(self.root.get_submodule(layer.projection), z, heads)
        new = self.editor.changed(Placed(placed.edit, placed.site.whole), old)
        return x + (new - old).sum(-2)

    def _record_value(self, site: Site, x: Tensor) -> Tensor:
        value = x
        if site.component in READS_RESIDUAL:
            layer = self.anatomy.layer(site)
            count = layer.head_count(site.component) if site.heads is None else len(site.heads)
            value = (x if self.wish.grad else x.clone())[:, :, None].expand(-1, -1, count, -1)
        return self.keeper.keep(site, x, value)

    def _record_results(self, site: Site, layer: Layer, z: Tensor) -> Tensor:
        assert layer.projection is not None
        some = self.keeper.heads(site)
        heads = some if some is not None else tuple(range(layer.heads))
        projection = self.root.get_submodule(layer.projection)
        self.keeper.keep(site, z, head_results(projection, self._by_head(z, layer), heads))
        return z

    def recorded(self) -> MutableMapping[Site, Tensor]:
        """What was recorded, in the order it was asked for; raises where something never happened."""
        return self.keeper.recorded()

    def check_fired(self) -> None:
        """Raise for every edit that never changed anything it was told to change."""
        self.editor.check_fired()


class _Kept(threading.local):
    """A tensor seen earlier in the same forward pass."""

    value: Tensor


def _keep(into: _Kept, x: Tensor) -> Tensor:
    into.value = x.clone() if not x.requires_grad else x
    return x


def _unless_same(x: Tensor, change: Callable[[Tensor], Tensor], before: _Kept) -> Tensor:
    """Apply a change to x minus the residual before it."""
    residual = before.value.reshape(x.shape).to(x.device)
    write = x - residual
    new = change(write)
    return x if new is write and not new.requires_grad else residual + new


def _logits_hook(session: Session, change: Callable[[Tensor], Tensor], _: nn.Module, args: Any, output: Any) -> Any:
    if not session.live():
        return None
    key = logits_key(output)
    value = output if key is None else output[key] if isinstance(key, int) else getattr(output, key)
    new = change(value)
    if new is value:
        return None
    return with_logits(output, key, new)
