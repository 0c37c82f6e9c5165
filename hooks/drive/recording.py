"""Everything of one plain run that a sweep goes on from: each block's input and arguments, each attention's keys and
values.

The output of block l must be the input of block l + 1, bit for bit; where something happens in between (DeepStack,
stages) the tower cannot be driven block by block, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Layer, Tower
from interp.hooks.drive.packed import Shared
from interp.hooks.stand.call import Call, Tap, visible
from interp.hooks.stand.interface import Switch
from interp.hooks.survey.dissect import outer_tensor
from interp.kernels.errors import InterpError


class CannotDrive(InterpError):
    """A tower whose blocks cannot be run one by one; full forward passes are used instead."""


@dataclass(frozen=True, eq=False)
class Crossing:
    """A block's attention to another tower, whose keys and values no change in this tower moves."""

    layer: Layer
    shared: Shared


@dataclass(frozen=True, eq=False)
class Block:
    """One block as it was called."""

    layer: Layer
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    entered: Tensor
    shared: Shared
    output: Any = None
    crossing: Crossing | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """A plain run of one tower."""

    tower: Tower
    blocks: tuple[Block, ...]
    left: Tensor
    """The last block's output."""
    output: Any
    kept: Tensor | None = None
    """The columns that the output has logits of; None for all."""

    @property
    def length(self) -> int:
        return self.left.shape[1]

    @property
    def prompts(self) -> int:
        return self.left.shape[0]

    def cut(self, depth: int | None) -> Recording:
        """The same up to a block whose output is what is read further on."""
        if depth is None or depth >= len(self.blocks):
            return self
        return replace(self, blocks=self.blocks[:depth], left=self.blocks[depth].entered)


class _Calls(Tap):
    """Keeps one attention's call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def record(self, call: Call) -> None:
        self.calls.append(call)


def record(
    module: nn.Module,
    anatomy: Anatomy,
    tower: Tower,
    kwargs: Mapping[str, Any],
    *,
    kept: Tensor | None = None,
    beside: AbstractContextManager[Any] | None = None,
) -> Recording:
    """One forward pass without a cache, kept block by block, with logits of the `kept` columns only where the model can
    do that. `beside` is entered around it: a session that records more in the same pass."""
    reason = _undrivable(anatomy, tower)
    if reason is not None:
        raise CannotDrive(reason)
    crossings = _crossings(anatomy, tower)
    taps = {layer.attention: _Calls() for layer in (*tower.layers, *crossings.values())}
    entered: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    left: dict[int, Any] = {}
    kept = keeps(module, kept)
    with ExitStack() as undo, torch.no_grad():
        if beside is not None:
            undo.enter_context(beside)
        for name, tap in taps.items():
            Switch.watch(module.get_submodule(name), tap)
            undo.callback(Switch.forget, module.get_submodule(name), tap)
        for layer in tower.layers:
            block = module.get_submodule(layer.block)
            undo.callback(block.register_forward_pre_hook(_keep_input(entered, layer.index), with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(_keep_output(left, layer.index)).remove)
        output = module(**called(module, kwargs, kept))
    return replace(_checked(tower, crossings, taps, entered, left, output), kept=kept)


def _crossings(anatomy: Anatomy, tower: Tower) -> dict[int, Layer]:
    """By layer of a decoder, its attention to the encoder."""
    cross = anatomy.towers.get("cross")
    own = {layer.block: layer.index for layer in tower.layers}
    return {} if cross is None else {own[layer.block]: layer for layer in cross.layers if layer.block in own}


def keeps(module: nn.Module, columns: Tensor | None) -> Tensor | None:
    """The columns, where the model can be asked for the logits of these alone."""
    return columns if "logits_to_keep" in signature(module.forward).parameters else None


def called(module: nn.Module, kwargs: Mapping[str, Any], kept: Tensor | None) -> dict[str, Any]:
    """The arguments of a pass without a cache that computes the logits of these columns. A model on several devices
    gets them as a list: a tensor would be moved to the first device, and the head may lie on another."""
    several = len(set(getattr(module, "hf_device_map", {}).values())) > 1
    asked = {} if kept is None else {"logits_to_keep": kept.tolist() if several else kept}
    return {**kwargs, **_without_cache(module), **asked}


def _undrivable(anatomy: Anatomy, tower: Tower) -> str | None:
    if tower.name not in (anatomy.main, "text", "vision", "encoder", "decoder"):
        return f"the tower {tower.name!r} is not one of the kinds that are driven"
    crossings = _crossings(anatomy, tower)
    for layer in (*tower.layers, *crossings.values()):
        if layer.gated:
            return f"layer {layer.index} has a gate behind its attention"
        if not layer.interface:
            return f"layer {layer.index} is outside the attention interface"
    if any(layer.kind == "cross" for layer in tower.layers):
        return "some of its layers attend to another tower"
    if len({layer.block for layer in tower.layers}) < len(tower.layers):
        return "blocks with several attentions"
    return None


def _without_cache(module: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(getattr(module, "config", None), "use_cache") else {}


def _keep_input(into: dict[int, Any], index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[index] = (args, dict(kwargs))

    return hook


def _keep_output(into: dict[int, Any], index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        into[index] = output

    return hook


def _checked(
    tower: Tower,
    crossings: Mapping[int, Layer],
    taps: Mapping[str, _Calls],
    entered: Mapping[int, Any],
    left: Mapping[int, Any],
    output: Any,
) -> Recording:
    blocks: list[Block] = []
    before: Tensor | None = None
    for layer in tower.layers:
        call = _only_call(layer, taps)
        args, kwargs = entered[layer.index]
        key = layer.ports["resid_pre"].key
        hidden = kwargs[key] if isinstance(key, str) else args[key or 0]
        if before is not None and not torch.equal(before, hidden):
            raise CannotDrive(f"something is added between layers {layer.index - 1} and {layer.index}")
        if hidden.ndim != 3 or call.q.shape[0] != hidden.shape[0] or call.q.shape[2] != hidden.shape[1]:
            raise CannotDrive(f"layer {layer.index} attends in windows, or to several images in one row")
        other = crossings.get(layer.index)
        crossing = None if other is None else Crossing(other, _shared(_only_call(other, taps)))
        blocks.append(Block(layer, args, kwargs, hidden, _shared(call), left[layer.index], crossing))
        before = outer_tensor(left[layer.index])[1]
    assert before is not None
    return Recording(tower, tuple(blocks), before, output)


def _only_call(layer: Layer, taps: Mapping[str, _Calls]) -> Call:
    calls = taps[layer.attention].calls
    if len(calls) != 1:
        raise CannotDrive(f"layer {layer.index} attended {len(calls)} times in one run")
    return calls[0]


def _shared(call: Call) -> Shared:
    return Shared(call.k, call.v, _bias(call), call.scale, call.softcap, call.sinks)


def _bias(call: Call) -> Tensor | None:
    """Mask, position bias and additive mask in one tensor added to the scores."""
    mask, n = visible(call), call.q.shape[2]
    bias = call.bias
    if mask is None:
        return bias
    m, device = call.k.shape[2], call.q.device
    total = torch.zeros((), dtype=call.q.dtype, device=device).masked_fill(~mask.dense(n, m, device=device), -torch.inf)
    added = mask.additive(torch.arange(n, device=device), torch.arange(m, device=device))
    for part in (added, bias):
        total = total if part is None else total + part.to(total.dtype)
    return total
