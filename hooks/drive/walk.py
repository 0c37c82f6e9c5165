"""The blocks of a tower called again one by one: with a graph of one block at a time, or on other residuals.

One plain pass keeps what each block was called with; its residual is the block's input and nothing else is copied, so
what stands in memory is one residual a layer. A block can then be called again as it was, with edits, with what happens
inside it recorded (with a graph if asked), in more rows than the pass had (versions of each row, row by row within a
version), and no further than its attention. Limits: towers whose blocks add to one residual and feed nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Anatomy, Layer, Port, Tower
from interp.hooks.drive.recording import called, keeps
from interp.hooks.drive.slices import Enough
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import ModelError
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.output import logits_of
from interp.hooks.stand.ports import stand_at
from interp.hooks.survey.dissect import outer_tensor

Take = Callable[[int, str, Tensor], None]
"""Gets a layer, one of `z attn_out attn_write mlp_write`, and what is there now; it keeps a copy or nothing."""
Until = Literal["qkv", "z"]


@dataclass(eq=False)
class Passed:
    """One pass: the residual each block began with, what it was called with, the last residual and the logits."""

    rows: int
    length: int
    entered: dict[int, Tensor]
    calls: Mapping[int, tuple[tuple[Any, ...], Mapping[str, Any]]]
    left: Tensor
    logits: Tensor
    kept: Tensor | None
    """The columns that the logits are of; None for all."""


class Walk:
    """One tower of a model."""

    def __init__(self, module: nn.Module, anatomy: Anatomy, tower: Tower, *, family: Family | None = None) -> None:
        reason = _undrivable(anatomy, tower)
        if reason is not None:
            raise ModelError(
                f"edges are followed block by block, which the tower {tower.name!r} does not allow: {reason}."
            )
        self.module, self.anatomy, self.tower, self.family = module, anatomy, tower, family
        self.name = spelled(anatomy, tower)

    @property
    def layers(self) -> list[int]:
        """In order."""
        return [layer.index for layer in self.tower.layers]

    def site(self, layer: int, component: str) -> Site:
        """A site of this tower."""
        return Site(self.name, layer, component)

    def run(
        self,
        kwargs: Mapping[str, Any],
        *,
        columns: Tensor | None = None,
        take: Take | None = None,
        wanted: Sequence[str] = (),
        edits: Iterable[Edit] = (),
        leaf: bool = False,
    ) -> Passed:
        """One pass. `take` is shown what is at `wanted` in each layer; with `leaf` the last residual asks for a
        gradient and the logits carry its graph, nothing before it does."""
        entered: dict[int, Tensor] = {}
        calls: dict[int, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        left: list[Tensor] = []
        kept = keeps(self.module, columns)
        with ExitStack() as undo:
            undo.enter_context(Session(self.module, self.anatomy, edits=edits, family=self.family))
            undo.enter_context(torch.enable_grad() if leaf else torch.no_grad())
            for layer in self.tower.layers:
                block = self.module.get_submodule(layer.block)
                undo.callback(block.register_forward_pre_hook(_enter(layer, entered, calls), with_kwargs=True).remove)
                for component in wanted:
                    if component in layer.ports or component == "z":
                        undo.enter_context(self._shown(layer, component, take))
            port = self.tower.layers[-1].ports["resid_post"]
            undo.callback(stand_at(self.module, port, _leave(left, leaf), batch=lambda: None).remove)
            logits = logits_of(self.module(**called(self.module, kwargs, kept)))
        if logits is None:
            raise ModelError(f"{type(self.module).__name__} has no logits to measure: load it with a head.")
        first = entered[self.layers[0]]
        return Passed(len(first), first.shape[1], entered, calls, left[0], logits, kept if logits.ndim == 3 else None)

    @contextmanager
    def _shown(self, layer: Layer, component: str, take: Take | None) -> Iterator[None]:
        """`take` sees the component of a layer while inside."""
        assert take is not None
        port = Port(layer.out or "", "in", 0) if component == "z" else layer.ports[component]
        before: list[Tensor] = []

        def look(x: Tensor) -> Tensor:
            value = x.detach()
            if component == "z":
                value = value.reshape(*value.shape[:2], layer.heads, layer.d_value)
            take(layer.index, component, value if port.minus is None else value - before.pop())
            return x

        def hold(x: Tensor) -> Tensor:
            before.append(x.detach().clone())
            return x

        with ExitStack() as undo:
            if port.minus is not None:
                undo.callback(stand_at(self.module, port.minus, hold, batch=self._rows_of).remove)
            undo.callback(stand_at(self.module, port, look, batch=self._rows_of).remove)
            undo.callback(self.module.register_forward_pre_hook(self._count, with_kwargs=True).remove)
            yield

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._rows = next(len(v) for v in (*args, *kwargs.values()) if torch.is_tensor(v))

    def _rows_of(self) -> int | None:
        return self._rows

    _rows: int | None = None

    def block(
        self,
        passed: Passed,
        layer: int,
        hidden: Tensor,
        *,
        edits: Sequence[Edit] = (),
        record: Sequence[str] = (),
        grad: bool = False,
        until: Until | None = None,
    ) -> Called:
        """A block on another residual [version * row, position, d]; `until` stops behind q, k, v or behind z."""
        found = self.tower.by_index[layer]
        key = found.ports["resid_pre"].key
        args, kwargs = passed.calls[layer]
        times = len(hidden) // passed.rows
        more = [_repeated(value, passed, times) for value in args]
        named = {name: _repeated(value, passed, times) for name, value in kwargs.items()}
        if isinstance(key, str):
            named[key] = hidden
        else:
            more[int(key or 0)] = hidden
        session = Session(
            self.module, self.anatomy, edits=edits, family=self.family,
            wish=Wish([self.site(layer, c) for c in record], grad=grad),
        )  # fmt: skip
        out: Tensor | None = None
        with ExitStack() as undo:
            undo.enter_context(session)
            session.moment.begin((), {"inputs_embeds": hidden})
            undo.enter_context(torch.enable_grad() if grad else torch.no_grad())
            if until is not None:
                attention, stop = self.module.get_submodule(found.attention), _Stop(until)
                Switch.watch(attention, stop)
                undo.callback(Switch.forget, attention, stop)
            try:
                out = outer_tensor(self.module.get_submodule(found.block)(*more, **named))[1]
            except Enough:
                out = None
        return Called(out, {site.component: value for site, value in session.recorded().items()} if record else {})


@dataclass(eq=False)
class Called:
    """What a block gave (None where it was stopped), and what was recorded in it by component."""

    out: Tensor | None
    at: Mapping[str, Tensor] = field(default_factory=dict)


class _Stop(Tap):
    """Ends a block at its attention."""

    def __init__(self, until: Until) -> None:
        self.until = until

    def before(self, call: Call) -> None:
        if self.until == "qkv":
            raise Enough

    def record(self, call: Call) -> None:
        raise Enough


def _undrivable(anatomy: Anatomy, tower: Tower) -> str | None:
    """Why its blocks cannot be called one by one, if so."""
    if len({layer.block for layer in tower.layers}) < len(tower.layers) or "cross" in anatomy.towers:
        return "its blocks have several attentions"
    if len(anatomy.towers) > 1 and tower.name != anatomy.main:
        return "it feeds another tower, or reads one, so its blocks are not the whole of the run"
    for layer in tower.layers:
        if layer.kind == "cross":
            return f"layer {layer.index} attends to another tower"
        if layer.gated:
            return f"layer {layer.index} has a gate behind its attention"
        if not layer.interface:
            return f"layer {layer.index} is outside transformers' attention interface"
        if "resid_pre" not in layer.ports or layer.out is None:
            return f"the residual or the output projection of layer {layer.index} was not found"
    return None


def _enter(layer: Layer, entered: dict[int, Tensor], calls: dict[int, Any]) -> Any:
    key = layer.ports["resid_pre"].key

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer.index in entered:
            raise ModelError(f"layer {layer.index} ran twice in one pass: edges need one call of each block.")
        entered[layer.index] = (kwargs[key] if isinstance(key, str) else args[key or 0]).detach()
        here = None if isinstance(key, str) else int(key or 0)
        calls[layer.index] = (
            tuple(None if n == here else _no_cache(value) for n, value in enumerate(args)),
            {name: None if name == key else _no_cache(value) for name, value in kwargs.items()},
        )

    return hook


def _leave(left: list[Tensor], leaf: bool) -> Callable[[Tensor], Tensor]:
    def look(x: Tensor) -> Tensor:
        left.append(x.detach().requires_grad_() if leaf else x)
        return left[-1]

    return look


def _no_cache(value: Any) -> Any:
    """A cache would give the block its own keys a second time."""
    return None if hasattr(value, "get_seq_length") else value


def _repeated(value: Any, passed: Passed, times: int) -> Any:
    """An argument for `times` versions of the rows, where it has one value per row."""
    if times == 1 or passed.rows == 1:
        return value
    if isinstance(value, tuple):
        return tuple(_repeated(one, passed, times) for one in value)
    if not torch.is_tensor(value) or value.ndim < 2 or len(value) != passed.rows:
        return value
    if value.ndim == 2 and value.shape[1] != passed.length:
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))
