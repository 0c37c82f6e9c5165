"""One owner of everything that is put on a model: it stands at the sites, edits, records, and takes itself off again.

A session is entered before a run and left after it, whatever happens in between. It belongs to the thread that
entered it unless told otherwise, so that two threads can look into one model at once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Anatomy, Layer, Port
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.edits.edits import Edit, ValueEdit
from interp.hooks.edits.placing import Placed, places
from interp.hooks.edits.route import ValueChange
from interp.hooks.errors import BudgetError, EditError, NotFired, SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.head_tap import HeadTap
from interp.hooks.run.moment import Moment
from interp.hooks.run.shelf import Shelf
from interp.hooks.run.tape import head_axis, select
from interp.hooks.sites import CALL, KV, Site
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.output import logits_key, with_logits
from interp.hooks.stand.ports import head_results, stand_at

READS_RESIDUAL = {"q_in": "resid_pre", "k_in": "resid_pre", "v_in": "resid_pre"}


@dataclass
class Wish:
    """What to record, and how."""

    sites: Sequence[Site] = ()
    positions: Positions | None = None
    keys: Positions | None = None
    grad: bool = False
    dtype: torch.dtype | None = None
    shelf: MutableMapping[Site, Tensor] = field(default_factory=dict)
    cpu: bool = False
    budget: int | None = None


class Session:
    """What is on a model during one run."""

    def __init__(
        self,
        root: nn.Module,
        anatomy: Anatomy,
        *,
        edits: Iterable[Edit] = (),
        wish: Wish | None = None,
        inputs: Inputs | None = None,
        family: Family | None = None,
        all_threads: bool = False,
        describe: Callable[[Mapping[str, Any]], Inputs] | None = None,
    ) -> None:
        self.root, self.anatomy, self.family = root, anatomy, family
        self.wish = wish or Wish()
        self.edits = [Placed(edit, site) for edit in edits for site in places(anatomy, edit)]
        self.moment = Moment(inputs, describe)
        self.fired: dict[tuple[int, str | None, int | None], int] = defaultdict(int)
        self.pieces: dict[Site, list[Tensor]] = defaultdict(list)
        self.bytes = 0
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
            self.pieces.clear()

    def close(self) -> None:
        """Take everything off; harmless a second time."""
        self._on_model = False
        self._undo.close()

    def live(self) -> bool:
        """Whether the session is on, for the current thread."""
        return self._on_model and self._thread in (None, threading.get_ident())

    def __repr__(self) -> str:
        return f"Session({len(self.edits)} edits, {len(self.wish.sites)} sites recorded)"

    def _stand(self) -> None:
        self._undo.enter_context(forced_eager())
        self._on(self.root.register_forward_pre_hook(self._root_begins, with_kwargs=True, prepend=True))
        for block, members in self._by_attention().items():
            self._stand_at_heads(block, members)
        for placed in self.edits:
            self._stand_to_edit(placed)
        for site in self.wish.sites:
            self._stand_to_record(site)

    def _on(self, handle: Any) -> None:
        self._undo.callback(handle.remove)

    def _root_begins(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.live():
            self.ran = True
            self.moment.begin(args, kwargs)

    def _by_attention(self) -> dict[str, tuple[Layer, list[Placed], list[Site]]]:
        found: dict[str, tuple[Layer, list[Placed], list[Site]]] = {}
        for placed in self.edits:
            if self._in_call(placed.site):
                layer = self.anatomy.layer(placed.site)
                found.setdefault(layer.attention, (layer, [], []))[1].append(placed)
        for site in self.wish.sites:
            if self._in_call(site):
                layer = self.anatomy.layer(site)
                found.setdefault(layer.attention, (layer, [], []))[2].append(site)
        return found

    def _in_call(self, site: Site) -> bool:
        """Whether the site is part of the attention call, as z is unless a gate stands behind it."""
        return site.component in CALL and not (site.component == "z" and self.anatomy.layer(site).gated)

    def _stand_at_heads(self, attention: str, members: tuple[Layer, list[Placed], list[Site]]) -> None:
        layer, edits, sites = members
        module = self.root.get_submodule(attention)
        tap = HeadTap(self, layer, edits, sites)
        if layer.interface:
            Switch.watch(module, tap)
            self._undo.callback(Switch.forget, module, tap)
        else:
            self._stand_at_border(layer, tap)

    def _stand_at_border(self, layer: Layer, tap: HeadTap) -> None:
        from interp.hooks.stand.boundary import Border

        for handle in Border(self.root, layer, self.family, tap).stand():
            self._on(handle)

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
        self._at(self._port(site), partial(self._edit_value, placed))

    def _stand_to_record(self, site: Site) -> None:
        if self._in_call(site):
            return
        if site.component == "z":
            self._at(self._port(site), partial(self._record_gated, site))
            return
        if site.component == "result":
            layer = self.anatomy.layer(site)
            out = layer.out
            if out is None:
                raise SiteError(f"{site}: the output projection of this layer was not found.")
            self._at(Port(out, "in", 0), partial(self._record_results, site, layer))
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
        return layer.ports[component]

    def _at(self, port: Port, change: Callable[..., Tensor], *, with_input: Layer | None = None) -> None:
        if with_input is not None:
            kept = _Kept()
            assert with_input.out is not None
            self._at(Port(with_input.out, "in", 0), partial(_keep, kept))
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
        self._on(stand_at(self.root, port, lambda x: change(x) if self.live() else x, batch=self.moment.rows))

    @staticmethod
    def _by_head(z: Tensor, layer: Layer) -> Tensor:
        return z.unflatten(-1, (layer.heads, layer.d_value))

    def _edit_value(self, placed: Placed, x: Tensor) -> Tensor:
        return self.changed(placed, x)

    def _edit_gated(self, placed: Placed, x: Tensor) -> Tensor:
        z = self._by_head(x, self.anatomy.layer(placed.site))
        new = self.changed(placed, z)
        return x if new is z else new.flatten(-2)

    def _record_gated(self, site: Site, x: Tensor) -> Tensor:
        z = self._by_head(x, self.anatomy.layer(site))
        new = self.record_heads(site, z)
        return x if new is z else new.flatten(-2)

    def record_heads(self, site: Site, value: Tensor) -> Tensor:
        """Record the site's heads out of [b, position, head, d]; returns what the model goes on with."""
        heads = self.heads(site)
        if heads is None:
            return self.keep(site, value, value)
        heads = heads.to(value.device)
        part = value.index_select(2, heads)
        if not self.wish.grad:
            self.keep(site, value, part)
            return value
        return value.index_copy(2, heads, self.keep(site, part, part))

    def _edit_results(self, placed: Placed, x: Tensor, z: Tensor, layer: Layer) -> Tensor:
        assert layer.out is not None
        heads = placed.site.heads or tuple(range(layer.heads))
        old = head_results(self.root.get_submodule(layer.out), z, heads)
        new = self.changed(Placed(placed.edit, placed.site.whole), old)
        return x + (new - old).sum(-2)

    def _record_value(self, site: Site, x: Tensor) -> Tensor:
        value = x
        if site.component in READS_RESIDUAL:
            layer = self.anatomy.layer(site)
            count = layer.head_count(site.component) if site.heads is None else len(site.heads)
            value = (x if self.wish.grad else x.clone())[:, :, None].expand(-1, -1, count, -1)
        return self.keep(site, x, value)

    def _record_results(self, site: Site, layer: Layer, z: Tensor) -> Tensor:
        assert layer.out is not None
        heads = site.heads if site.heads is not None else tuple(range(layer.heads))
        self.keep(site, z, head_results(self.root.get_submodule(layer.out), self._by_head(z, layer), heads))
        return z

    def changed(self, placed: Placed, x: Tensor, *, axis: int = 1, change: ValueChange | None = None) -> Tensor:
        """x with the edit applied at its positions, rows and heads; the same object where it does not apply now.
        `change` takes the place of the edit's own where that needs to see more than x."""
        edit, site = placed.edit, placed.site
        assert isinstance(edit, ValueEdit)
        if not self.moment.applies(edit):
            return x
        rows, length, cross = x.shape[0], x.shape[axis], self.cross(site)
        where = self.moment.where(edit, site, rows, length, x.device, keys=site.component in KV, cross=cross)
        if where is not None and not bool(where.any()):
            return x
        self.note(placed)
        heads = self.heads(site)
        part = x if heads is None else x.index_select(head_axis(site.component), heads.to(x.device))
        valid = self.moment.valid(site, rows, length, cross=cross) if edit.needs_valid else None
        new = (change or edit.change)(part, valid).to(x.dtype)
        if where is not None:
            shape = [1] * x.ndim
            shape[0], shape[axis] = where.shape
            new = torch.where(where.view(shape), new, part)
        return new if heads is None else x.index_copy(head_axis(site.component), heads.to(x.device), new)

    def cross(self, site: Site) -> bool:
        """Whether the site lies in a cross-attention layer."""
        return site.layer is not None and self.anatomy.layer(site).kind == "cross"

    def heads(self, site: Site) -> Tensor | None:
        """The site's heads as indices into the tensor; None for all of them."""
        if site.heads is None:
            return None
        return torch.tensor(self.anatomy.layer(site).heads_of(site))

    def keep(self, site: Site, x: Tensor, value: Tensor) -> Tensor:
        """Record `value` at a site; returns what the model goes on with, which carries the gradient if one was asked
        for."""
        if self.wish.grad and value is x and value.is_floating_point() and not value.requires_grad:
            x = value = value.detach().requires_grad_()
        spec = self.wish.positions
        if spec is not None and site.component not in ("pattern", "scores", "logits", "out"):
            value = select(value, self._chosen(spec, site, value.shape[1]).to(value.device), axis=1)
        self._put(site, value, fresh=value is not x)
        return x

    def _chosen(self, spec: Positions, site: Site, length: int) -> Tensor:
        if site.component in KV:
            return self.moment.keys(spec, site, length, cross=self.cross(site))
        return self.moment.mask(spec, site, length)

    def _put(self, site: Site, value: Tensor, *, fresh: bool) -> None:
        wish = self.wish
        if not wish.grad:
            value = value.detach()
            whole = value.untyped_storage().nbytes() <= value.numel() * value.element_size()
            safe = whole and (fresh or site.component in CALL)
            moved = value.to(device="cpu" if wish.cpu else None, dtype=wish.dtype)
            value = value.clone() if moved is value and not safe else moved
        self.bytes += value.numel() * value.element_size()
        if wish.budget is not None and self.bytes > wish.budget:
            raise BudgetError(
                f"recording passed the budget of {wish.budget / 2**20:.0f} MiB at {site}: ask for fewer sites, heads"
                " or positions, store='cpu' or a directory, or a larger budget=."
            )
        if isinstance(wish.shelf, Shelf):
            self._shelve(site, value)
        else:
            self.pieces[site].append(value)

    def _shelve(self, site: Site, value: Tensor) -> None:
        """Write at once, so that memory holds one tensor at a time."""
        shelf = self.wish.shelf
        shelf[site] = _join(site, [shelf[site], value]) if self.pieces[site] else value
        self.pieces[site] = [value[:0]]

    def recorded(self) -> MutableMapping[Site, Tensor]:
        """What was recorded, in the order it was asked for; raises where something never happened."""
        missing = [str(s) for s in self.wish.sites if s not in self.pieces]
        if missing:
            raise NotFired(
                f"asked to record {', '.join(missing)}, but {'it' if len(missing) == 1 else 'they'} never ran for"
                " these inputs (a skipped layer, or a tower without its input)."
            )
        if isinstance(self.wish.shelf, Shelf):
            self.wish.shelf.sort(self.wish.sites)
            return self.wish.shelf
        for site in self.wish.sites:
            parts = self.pieces.pop(site)
            self.wish.shelf[site] = parts[0] if len(parts) == 1 else _join(site, parts)
        return self.wish.shelf

    @staticmethod
    def _key(placed: Placed) -> tuple[int, str | None, int | None]:
        return id(placed.edit), placed.site.tower, placed.site.layer

    def note(self, placed: Placed) -> None:
        """An edit did its work at its layer."""
        self.fired[self._key(placed)] += 1

    def check_fired(self) -> None:
        """Raise for every edit that never changed anything it was told to change."""
        silent = [placed for placed in self.edits if not self.fired[self._key(placed)]]
        if silent:
            raise NotFired(
                "these edits never fired: "
                + "; ".join(f"{p.edit!r} at {p.site}" for p in silent)
                + ". Did their layer run, and their phase or step come?"
            )


class _Kept(threading.local):
    """A tensor seen earlier in the same forward pass."""

    value: Tensor


def _keep(into: _Kept, x: Tensor) -> Tensor:
    into.value = x.clone() if not x.requires_grad else x
    return x


def _unless_same(x: Tensor, change: Callable[[Tensor], Tensor], before: _Kept) -> Tensor:
    """Apply a change to x minus the residual before it."""
    residual = before.value.reshape(x.shape)
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


def _join(site: Site, parts: list[Tensor]) -> Tensor:
    """Several calls of one module in one run: images one after the other (Qwen-VL), or steps of generating."""
    if site.component not in ("pattern", "scores"):
        return torch.cat(parts, dim=1)
    rows, keys = sum(p.shape[2] for p in parts), sum(p.shape[3] for p in parts)
    whole = parts[0].new_zeros(*parts[0].shape[:2], rows, keys)
    r = c = 0
    for part in parts:
        whole[:, :, r : r + part.shape[2], c : c + part.shape[3]] = part
        r, c = r + part.shape[2], c + part.shape[3]
    return whole
