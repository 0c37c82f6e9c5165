"""A block run on a sum in two parts, which it takes apart by the rules of contextual decomposition.

Tensors hold the relevant part of every version and row, and then the irrelevant one, along the first axis: what is
linear in the residual keeps them apart without a rule; this file has the rules for what is not linear. With beta the
relevant part of an input, gamma the other one:

    matrix      W beta + s b,  s = |W beta| / (|W beta| + |W gamma|) number by number, and likewise for gamma
    norm        its scale is that of beta + gamma; its shift is shared by s = |beta| / (|beta| + |gamma|)
    activation  act(beta + gamma) - act(gamma), and act(gamma)
    attention   the pattern is that of the run (whoever drives the block holds q and k), so that it is linear in v

Every rule's parts add up to what the block makes of the sum, which `check` asks: anything without a rule shows there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.norms import frozen
from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import ModelError
from interp.hooks.slopes.rules import activations, gated, norms

INSTEAD = "use method='exact', which patches edge by edge, or method='eap-ig'."


def refuse_rules(module: nn.Module, layer: Layer, *, mlp: bool) -> None:
    """Raise for a block with something in its MLP that there is no rule for."""
    if not mlp:
        return
    where = f"layer {layer.index} cannot be taken in parts"
    if gated(module, layer):
        raise ModelError(
            f"{where}: its MLP is gated, act(g) times u, and contextual decomposition has no rule for a product of two"
            f" parts: {INSTEAD}"
        )
    if "neurons" not in layer.ports or not activations(module, layer):
        why = layer.missing.get("neurons", "no activation module was found in its MLP")
        raise ModelError(f"{where}: {why}, and contextual decomposition has rules for plain MLPs only: {INSTEAD}")


@contextmanager
def apart(module: nn.Module, layer: Layer) -> Iterator[None]:
    """While inside, this block keeps the two parts of its residual apart."""
    block = module.get_submodule(layer.block)
    inside = f"{layer.attention.removeprefix(layer.block + '.')}."
    acting = {child for _, child in activations(module, layer)}
    normal = {child for name, child in norms(block) if not name.startswith(inside)}  # those of q and k are held
    with ExitStack() as undo:
        for child in block.modules():
            if child in acting:
                undo.callback(child.register_forward_hook(_activation).remove)
            elif child in normal:
                undo.callback(child.register_forward_hook(_norm).remove)
            elif _has_bias(child):
                undo.callback(child.register_forward_hook(_matrix).remove)
        yield


def joined(relevant: Tensor, whole: Tensor) -> Tensor:
    """Both parts of a sum, one behind the other, for versions [version * row, ...] of its relevant part."""
    whole = whole.repeat(len(relevant) // len(whole), *[1] * (whole.ndim - 1)).to(relevant)
    return torch.cat([relevant, whole - relevant])


def check(parts: Tensor, whole: Tensor, what: str) -> None:
    """Raise where parts do not add up to what they are parts of."""
    relevant, rest = parts.chunk(2)
    total = (relevant + rest).unflatten(0, (-1, len(whole)))
    bound = 1024 * torch.finfo(whole.dtype).eps * max(1.0, float(parts.abs().max()))
    gap = float((total - whole.to(total)).abs().max())
    if not gap <= bound:
        raise ModelError(
            f"the two parts of {what} do not add up to it (off by {gap:.3g}): before it there is something other than"
            f" a matrix, a norm or an activation module, and contextual decomposition has no rule for that: {INSTEAD}"
        )


def shares(parts: Tensor) -> Tensor:
    """How much of a constant each part gets, number by number; all is the irrelevant one's where both are 0."""
    sizes = parts.abs()
    relevant, rest = sizes.chunk(2)
    share = torch.where(relevant > 0, relevant / (relevant + rest), 0.0)
    return torch.cat([share, 1 - share])


def _has_bias(child: nn.Module) -> bool:
    plain = isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D"
    return plain and getattr(child, "bias", None) is not None


def _matrix(child: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    without = output - child.bias
    return without + shares(without) * child.bias


def _norm(child: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    relevant, rest = args[0].chunk(2)
    held = frozen(child.forward, relevant + rest, name=type(child).__name__)
    parts = torch.cat([held.linear(relevant), held.linear(rest)])
    return (parts + shares(args[0].double()).to(parts) * held.shift).to(output.dtype)


def _activation(child: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    relevant, rest = args[0].chunk(2)
    alone = output.chunk(2)[1]
    return torch.cat([child.forward(relevant + rest) - alone, alone])
