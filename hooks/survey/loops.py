"""Layers that run several times in one call of a model: which module a pass is a run of, and a layer for each pass.

A pass is a run of the largest module around an attention that runs as often as the attention does: the block, where
blocks share their module (ALBERT) or are looped over (universal transformers, recurrent depth); the shared part of it,
where only that is shared (Zamba); at last the attention itself. Each pass is examined separately, so what differs
between passes is found, and its layers are in the tower in the order in which they ran.

Where attention is called several times in one run of its module, for different tokens or keys (IP-Adapter, Mochi), each
call is a pass, and what belongs to the block belongs to the first of them. Calls whose z, one after the other, are what
the output projection reads are no passes: they are one call for each image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Layer, Nth, Port
from interp.hooks.sites import LayerPass
from interp.hooks.survey.dissect import Event, Stage, first_tensor


class Entries:
    """How often each module was entered."""

    def __init__(self, root: nn.Module) -> None:
        self.root, self.count = root, Counter[str]()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count what the current thread enters."""
        own, handles = get_ident(), []

        def counting(name: str) -> Any:
            def hook(_: nn.Module, args: Any) -> None:
                self.count[name] += get_ident() == own

            return hook

        try:
            for name, child in self.root.named_modules():
                handles.append(child.register_forward_pre_hook(counting(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class Turns:
    """The runs of one block, and the norm behind the last of them."""

    stages: list[Stage] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)
    """When each began."""
    calls: list[Mapping[str, int]] = field(default_factory=list)
    """By attention that makes several calls in a run, how many."""
    last: Any = None
    norm: Event | None = None


def unit(attention: str, block: str, entries: Mapping[str, int]) -> str:
    """The module whose runs are the passes of an attention: its block, or the largest in it that runs as often."""
    times = entries.get(attention, 0)
    if entries.get(block, 0) >= times:
        return block
    parts, least = attention.split("."), len(block.split(".")) if block else 0
    inside = [".".join(parts[:n]) for n in range(least + 1, len(parts) + 1)]
    return next((name for name in inside if entries.get(name, 0) == times), attention)


def numbered(pieces: Sequence[Tensor], events: Sequence[Event]) -> bool:
    """Whether several calls in one run are calls of their own, and not the parts of what one projection reads."""
    if len(pieces) < 2:
        return False
    if len({z.shape[:1] + z.shape[2:] for z in pieces}) > 1:
        return True
    whole = torch.cat(list(pieces), dim=1).reshape(-1)
    reads = (read[1] for event in events if (read := first_tensor(event.inputs)) is not None)
    return not any(x.numel() == whole.numel() and torch.equal(x.reshape(-1), whole) for x in reads)


def passes_of(layers: Sequence[Layer], turns: Mapping[str, Turns]) -> list[Layer]:
    """A tower's layers, one for each run of their block as they come, in the order of running, each with its pass."""
    count: Counter[str] = Counter()
    found: list[tuple[tuple[int, int], Layer]] = []
    for layer in layers:
        number, mine = count[layer.attention], turns[layer.block]
        count[layer.attention] += 1
        nth = Nth(layer.block, number, len(mine.stages)) if len(mine.stages) > 1 else None
        whole = replace(layer, nth=nth, ports={name: _at(port, nth) for name, port in layer.ports.items()})
        calls = [some.get(layer.attention, 1) for some in mine.calls]
        for n, one in enumerate(_by_call(whole, calls, number)):
            found.append(((mine.entered[number], n), one))
    if all(layer.nth is None for _, layer in found):
        return sorted((layer for _, layer in found), key=lambda layer: layer.index)
    ordered = [layer for _, layer in sorted(found, key=lambda one: one[0])]
    return [replace(one, index=_index(order, one)) for order, one in enumerate(ordered)]


def _index(order: int, layer: Layer) -> LayerPass:
    return LayerPass(order, layer.index, None if layer.nth is None else layer.nth.number)


def _at(port: Port, nth: Nth | None) -> Port:
    return replace(port, nth=nth, minus=None if port.minus is None else _at(port.minus, nth))


def _by_call(layer: Layer, calls: Sequence[int], number: int) -> list[Layer]:
    """A layer for each of several attention calls in one run of its block; the block's places go to the first."""
    times = calls[number]
    if times == 1 and sum(calls) == len(calls):
        return [layer]
    before, heads = sum(calls[:number]), ("q", "k", "v", "z")
    ports = {name: port for name, port in layer.ports.items() if name not in heads}
    why = f"it belongs to the first of the {times} calls that its attention makes in one run"
    first = replace(layer, ports=ports, out=None)
    other = replace(layer, ports={}, out=None, missing={**layer.missing, **dict.fromkeys(ports, why)})
    nth = [Nth(layer.attention, before + n, sum(calls), calls=True) for n in range(times)]
    return [replace(first if n == 0 else other, nth=one) for n, one in enumerate(nth)]
