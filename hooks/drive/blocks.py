"""The blocks of one tower, run by ourselves: all of them once and kept, and then any of them again on other residuals.

This is the one machine under replay (`replay`), frozen chains (`chain`) and edges: it says what can be driven, records,
hands a block its arguments, and stands in it while it runs. While recording with `heads` the output of block l must be
the input of block l + 1, bit for bit; where something happens in between (DeepStack, stages) that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Anatomy, Layer, Tower
from interp.hooks.drive.intercept import Calls, Intercept, OwnTap
from interp.hooks.drive.packed import Shared
from interp.hooks.drive.recording import BlockCall, CannotDrive, Crossing, Recording, Whereabouts, residual
from interp.hooks.edits.edits import Edit, ValueEdit
from interp.hooks.passes import driven
from interp.hooks.run.answer import ends
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session, edits_on
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site, parse
from interp.hooks.stand.call import Call, visible
from interp.hooks.stand.output import answer_of, keeps_columns, logits_of, no_logits, outer_tensor

Take = Callable[[int, str, Tensor], None]
"""Gets a layer, a component, and what is there now; it keeps a copy or nothing."""
Until = Literal["qkv", "z"]


class Enough(Exception):
    """The attention has what is wanted; the rest of the block would be thrown away."""


@dataclass(eq=False)
class Called:
    """What a block gave (None where it was stopped), and what was recorded in it, by component or site."""

    out: Tensor | None
    at: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def whole(self) -> Tensor:
        """What a block that was not stopped gave."""
        assert self.out is not None
        return self.out


class Blocks:
    """One tower of a model. `alone`: the tower must be the whole of the run, with one attention a block."""

    def __init__(
        self, module: nn.Module, anatomy: Anatomy, tower: Tower, *, family: Family | None = None, alone: bool = False
    ) -> None:
        reason = _refusal(anatomy, tower, alone=alone) or _entered(module) or _read_before(module, anatomy)
        if reason is not None:
            raise CannotDrive(tower, reason)
        self.module, self.anatomy, self.tower, self.family = module, anatomy, tower, family
        self.name = spelled(anatomy, tower)
        self.crossings = _crossings(anatomy, tower)
        """By layer of a decoder, its attention to the encoder."""

    @property
    def layers(self) -> list[int]:
        """In order."""
        return [layer.index for layer in self.tower.layers]

    def site(self, layer: int, component: str) -> Site:
        """A site of this tower."""
        return Site(self.name, layer, component)

    def record(
        self,
        kwargs: Mapping[str, Any],
        *,
        columns: Tensor | None = None,
        heads: bool = False,
        edits: Iterable[Edit] = (),
        beside: AbstractContextManager[Any] | None = None,
        take: Take | None = None,
        wanted: Sequence[str] = (),
        leaf: bool = False,
    ) -> Recording:
        """One pass without a cache, with logits of the `columns` only where the model can do that.

        `heads` keeps what every attention saw and every block gave. `take` is shown what is at `wanted` in each layer.
        `beside` is entered around the pass: a session that records more in it. With `leaf` the last residual asks for a
        gradient and the logits carry its graph, nothing before it does.
        """
        kept, notes = keeps(self.module, columns), _Notes(self)
        looks = self._looks(take, wanted)
        last = _Leaf(str(self.site(self.layers[-1], "resid_post")), into=notes.last)
        session = Session(self.module, self.anatomy, edits=[*edits, *looks, *[last] * leaf], family=self.family)
        with Intercept(self.module) as put, torch.enable_grad() if leaf else torch.no_grad():
            put.enter_context(session)
            if beside is not None:
                put.enter_context(beside)
            notes.stand(put, heads=heads, leaf=leaf)
            logits = logits_of(self.module(**called(self.module, kwargs, kept)))
        if logits is None:
            raise no_logits(self.module)
        first = notes.entered[self.layers[0]]
        return Recording(
            self.tower, notes.blocks(heads=heads), notes.entered, notes.last[0], logits,
            kept if logits.ndim == 3 else None, len(first), first.shape[1],
        )  # fmt: skip

    def _looks(self, take: Take | None, wanted: Sequence[str]) -> list[Edit]:
        return [
            _Look(str(self.site(layer.index, component)), take=partial(take, layer.index, component))
            for layer in self.tower.layers
            for component in wanted
            if take is not None and (component in layer.ports or component == "z")
        ]

    def run(
        self,
        base: Recording,
        layer: int,
        hidden: Tensor,
        *,
        edits: Sequence[Edit] = (),
        record: Sequence[str | Site] = (),
        grad: bool = False,
        until: Until | None = None,
    ) -> Called:
        """A block on other residuals [version * row, position, d], with edits, what happens in it recorded (with a
        graph if asked), and no further than behind q, k, v or behind z."""
        sites = {str(name): self.site(layer, name) if isinstance(name, str) else name for name in record}
        wish = Wish(list(sites.values()), grad=grad)
        session = Session(self.module, self.anatomy, edits=edits, wish=wish, family=self.family)
        block = base.block(layer)
        with Intercept(self.module) as put, torch.enable_grad() if grad else torch.no_grad():
            put.enter_context(session)
            session.moment.begin((), {"inputs_embeds": hidden})
            if until is not None:
                put.tap(block.layer, _Stop(until))
            out = self.call(base, block, hidden)
        found = session.recorded() if record else {}
        return Called(out, {name: found[site] for name, site in sites.items()})

    def call(self, base: Recording, block: BlockCall, hidden: Tensor, at: Whereabouts | None = None) -> Tensor | None:
        """What a block gives for residuals of all rows, or of the tokens at a place; None where it was stopped."""
        args, kwargs = base.arguments(block, hidden, at)
        try:
            with driven(self.module, block.layer.nth):
                return outer_tensor(self.module.get_submodule(block.layer.block)(*args, **kwargs))[1]
        except Enough:
            return None

    def attention(self, layer: Layer) -> nn.Module:
        """The module that attends."""
        return self.module.get_submodule(layer.attention)

    def attending(self, layer: int) -> list[Layer]:
        """All that attend in the block of a layer."""
        return [one for one in (self.tower.by_index[layer], self.crossings.get(layer)) if one is not None]


def keeps(module: nn.Module, columns: Tensor | None) -> Tensor | None:
    """The columns, where the model can be asked for the logits of these alone, and logits are what is read."""
    return columns if keeps_columns(module) and answer_of(module) is None else None


def called(module: nn.Module, kwargs: Mapping[str, Any], kept: Tensor | None) -> dict[str, Any]:
    """The arguments of a pass without a cache that computes the logits of these columns. A model on several devices
    gets them as a list: a tensor would be moved to the first device, and the head may be on another."""
    several = len(set(getattr(module, "hf_device_map", {}).values())) > 1
    asked = {} if kept is None else {"logits_to_keep": kept.tolist() if several else kept}
    caches = hasattr(getattr(module, "config", None), "use_cache")
    named = signature(module.forward).parameters
    streams = "use_streaming" in named  # it says by that word whether it caches (Mimi)
    sound = "input_values" in named and "use_cache" not in named  # it hands the word on beside its own (Pocket TTS)
    without = {"use_cache": False} if caches and not streams and not sound else {}
    return {**kwargs, **without, **asked}


def _crossings(anatomy: Anatomy, tower: Tower) -> dict[int, Layer]:
    cross = anatomy.towers.get("cross")
    own = {layer.run: layer.index for layer in tower.layers}
    return {} if cross is None else {own[layer.run]: layer for layer in cross.layers if layer.run in own}


def _entered(module: nn.Module) -> str | None:
    """Why blocks cannot be run again under the model's edits: one at a block's input would act once more on what it has
    already changed."""
    found = next((e for e in edits_on(module) if parse(e.site).component in ("embed", "resid_pre")), None)
    return None if found is None else f"the model runs under {found!r}, which changes what a block is given"


def _read_before(module: nn.Module, anatomy: Anatomy) -> str | None:
    """Why blocks cannot be run again where the metric reads a place inside them: they step aside behind the last."""
    answer = answer_of(module)
    return None if ends(anatomy, answer) else f"the metric reads {answer and answer.name!r}, a place before the end"


def _refusal(anatomy: Anatomy, tower: Tower, *, alone: bool) -> str | None:
    """Why a tower's blocks cannot be run one by one."""
    crossings = _crossings(anatomy, tower)
    if len({layer.run for layer in tower.layers}) < len(tower.layers) or (alone and "cross" in anatomy.towers):
        return "its blocks have several attentions"
    if tower.name not in (anatomy.main, "text", "vision", "encoder", "decoder"):
        return "it is not of a kind that is driven"
    if alone and len(anatomy.towers) > 1 and tower.name != anatomy.main:
        return "it feeds another tower, or reads one, so its blocks are not the whole of the run"
    for layer in (*tower.layers, *crossings.values()):
        reason = _layer_refusal(layer, alone=alone)
        if reason is not None:
            return f"layer {layer.index} {reason}"
    if any(layer.kind == "cross" for layer in tower.layers):
        return "some of its layers attend to another tower"
    return None


def _layer_refusal(layer: Layer, *, alone: bool) -> str | None:
    if layer.nth is not None and layer.nth.calls:
        return "attends several times in one run of its block"
    if layer.share is not None:
        return f"has its heads in {layer.share.of} processes"
    if layer.readers:
        return "has a z that several projections read, or one that also reads other numbers"
    if layer.gated:
        return "has a gate behind its attention"
    if not layer.seen:
        return "has an attention call that is not seen"
    if layer.kind == "self" and "resid_pre" not in layer.ports:
        return "has no residual that was found"
    return "has no output projection that was found" if alone and layer.out is None else None


class _Notes:
    """What is noted while a tower is recorded."""

    def __init__(self, blocks: Blocks) -> None:
        self.of, self.calls = blocks, Calls()
        self.entered: dict[int, Tensor] = {}
        self.called: dict[int, BlockCall] = {}
        self.outputs: dict[int, Any] = {}
        self.last: list[Tensor] = []
        """The last block's output."""

    def stand(self, put: Intercept, *, heads: bool, leaf: bool) -> None:
        """Look at every block, and with `heads` at every attention."""
        for layer in self.of.tower.layers:
            block = self.of.module.get_submodule(layer.block)
            put.before(block, partial(self._enter, layer), nth=layer.nth)
            if heads:
                put.after(block, partial(self._leave, layer), nth=layer.nth)
                for one in self.of.attending(layer.index):
                    put.tap(one, self.calls)
        if not leaf:
            put.after(block, self._end, nth=layer.nth)

    def _enter(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer.index in self.entered:
            raise self._refused(f"layer {layer.index} ran twice in one pass")
        self.entered[layer.index] = residual(layer, args, kwargs).detach()
        self.called[layer.index] = BlockCall.of(layer, args, kwargs)

    def _leave(self, layer: Layer, args: tuple[Any, ...], output: Any) -> None:
        self.outputs[layer.index] = output

    def _end(self, args: tuple[Any, ...], output: Any) -> None:
        self.last.append(outer_tensor(output)[1])

    def _refused(self, reason: str) -> CannotDrive:
        return CannotDrive(self.of.tower, reason)

    def blocks(self, *, heads: bool) -> tuple[BlockCall, ...]:
        """Every block as it was called, in order."""
        if not heads:
            return tuple(self.called.values())
        below = [None, *self.of.tower.layers]
        return tuple(map(self._attended, self.of.tower.layers, below))

    def _attended(self, layer: Layer, below: Layer | None) -> BlockCall:
        """A block with what its attentions saw, checked to be all that happened since the one below."""
        call, hidden = self._only_call(layer), self.entered[layer.index]
        if below is not None and not torch.equal(outer_tensor(self.outputs[below.index])[1], hidden):
            raise self._refused(f"something is added between layers {below.index} and {layer.index}")
        if hidden.ndim != 3 or call.q.shape[0] != hidden.shape[0] or call.q.shape[2] != hidden.shape[1]:
            raise self._refused(f"layer {layer.index} attends in windows, or to several images in one row")
        other = self.of.crossings.get(layer.index)
        crossing = None if other is None else Crossing(other, _shared(self._only_call(other)))
        block = self.called[layer.index]
        return replace(block, attended=_shared(call), crossing=crossing, output=self.outputs[layer.index])

    def _only_call(self, layer: Layer) -> Call:
        calls = self.calls.of(self.of.module, layer)
        if len(calls) != 1:
            raise self._refused(f"layer {layer.index} attended {len(calls)} times in one run")
        return calls[0]


def _shared(call: Call) -> Shared:
    return Shared(call.k, call.v, _bias(call), call.scale, call.softcap, call.sinks)


def _bias(call: Call) -> Tensor | None:
    """Mask, position bias and additive mask in one tensor added to the scores."""
    mask, bias = visible(call), call.bias
    if mask is None:
        return bias
    n, m, device = call.q.shape[2], call.k.shape[2], call.q.device
    total = torch.zeros((), dtype=call.q.dtype, device=device).masked_fill(~mask.dense(n, m, device=device), -torch.inf)
    added = mask.additive(torch.arange(n, device=device), torch.arange(m, device=device))
    for part in (added, bias):
        total = total if part is None else total + part.to(total.dtype)
    return total


@dataclass(frozen=True, eq=False, repr=False)
class _Look(ValueEdit):
    """Changes nothing; shows what is there."""

    take: Any = None

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        self.take(x.detach())
        return x


@dataclass(frozen=True, eq=False, repr=False)
class _Leaf(ValueEdit):
    """Cuts the graph, so that it begins here."""

    into: Any = None

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        self.into.append(x.detach().requires_grad_())
        made: Tensor = self.into[-1]
        return made


class _Stop(OwnTap):
    """Ends a block at its attention."""

    def __init__(self, until: Until) -> None:
        self.until = until

    def before(self, call: Call) -> None:
        if self.until == "qkv":
            raise Enough

    def record(self, call: Call) -> None:
        raise Enough
