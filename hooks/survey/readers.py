"""Checks (b) and (c) where several projections read a layer's z, or one that also reads other numbers.

Each reader is compared with the z that was recorded: what it reads is that part of z, bit for bit; its heads' results,
what it makes of the other numbers and its bias add up to what it gives; with a head's z at zero it gives what it makes
of those columns at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Layer, Reader

Close = Callable[[Tensor, Tensor, Tensor, str], None]


@dataclass(eq=False)
class Read:
    """What each reader was given and gave in one run, by its name."""

    values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @contextmanager
    def on(self, root: nn.Module, layers: list[Layer]) -> Iterator[Read]:
        """Listen to the readers of these layers."""
        with ExitStack() as undo:
            for name in dict.fromkeys(one.module for layer in layers for one in layer.readers):

                def keep(_: nn.Module, args: tuple[Any, ...], made: Tensor, name: str = name) -> None:
                    self.values[name] = args[0].detach().clone(), made.detach().clone()

                undo.callback(root.get_submodule(name).register_forward_hook(keep).remove)
            yield self


def part(z: Tensor, reader: Reader, positions: int) -> Tensor:
    """What a reader of so many positions reads of z [b, position, head, d]."""
    return z[:, :positions] if reader.end == "first" else z[:, z.shape[1] - positions :]


def disagreement(root: nn.Module, layer: Layer, z: Tensor, read: Read, close: Close) -> str | None:
    """What is wrong with a layer's readers; None where they read z and their sums hold. Raises through `close`."""
    for reader in layer.readers:
        if reader.module not in read.values:
            return f"{reader.module} did not run"
        x, y = read.values[reader.module]
        own = part(z, reader, x.shape[1])
        if not torch.equal(x[..., : own.shape[2] * own.shape[3]], own.flatten(2)):
            return f"{reader.module} does not read z"
        projection = root.get_submodule(reader.module)
        with torch.no_grad():
            nothing = projection.forward(torch.zeros_like(x)).double()
            parts = [projection.forward(alone).double() - nothing for alone in _alone(x, own)]
        total = torch.stack(parts).sum(0) + nothing
        size = torch.stack(parts).abs().sum(0) + nothing.abs() + y.double().abs().max()
        close(total, y, size, f"{reader.module}: sum of head results")
    return None


def _alone(x: Tensor, own: Tensor) -> Iterator[Tensor]:
    """What is read with one head's columns alone, for each head, and with the columns that are no head's."""
    heads, size = own.shape[2:]
    for head in range(heads):
        alone = torch.zeros_like(x)
        alone[..., head * size : (head + 1) * size] = own[:, :, head]
        yield alone
    rest = x.clone()
    rest[..., : heads * size] = 0
    yield rest


def without(root: nn.Module, layer: Layer, read: Read, edited: Read, head: int, close: Close) -> None:
    """Hold a run with a head's z at zero against the readers' own columns at zero."""
    size = layer.d_value
    for reader in layer.readers:
        x = read.values[reader.module][0].clone()
        x[..., head * size : (head + 1) * size] = 0
        with torch.no_grad():
            expected = root.get_submodule(reader.module).forward(x)
        close(edited.values[reader.module][1], expected, expected.double().abs().max(), f"{reader.module}: z = 0")
