"""Read and replace one tensor at the border of a module, with torch's own hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.spread import fitting_part, own_columns
from interp.hooks.anatomy.towers import Port
from interp.hooks.errors import ModelError
from interp.hooks.passes import Count
from interp.hooks.stand.call import Tap
from interp.hooks.stand.output import exchanged, outer_tensor
from interp.hooks.stand.sdpa import Sdpa

Change = Callable[[Tensor], Tensor]
"""Gets the tensor the model made; returns it, or what the model shall go on with."""


def stand_at(
    root: nn.Module,
    port: Port,
    change: Change,
    *,
    batch: Callable[[], int | None],
    live: Callable[[], bool] = lambda: True,
) -> Any:
    """Let `change` see, and replace, the tensor at a port in every forward pass that is `live`, at the port's own pass
    where its module runs several times; returns the handle that undoes it."""
    if port.nth is not None:
        count, uncount = Count.watch(root, port.nth, live)
        handle = stand_at(root, replace(port, nth=None), change, batch=batch, live=_both(live, count, port.nth.number))
        return _Both(handle, uncount)
    module = root.get_submodule(port.module) if port.module else root
    opened = _opened(root, port)
    if port.side == "in":
        handle = module.register_forward_pre_hook(_at_input(port, change, batch, live), with_kwargs=True)
    else:
        handle = module.register_forward_hook(_at_output(port, change, batch, live))
        _lookers_last(module)
    return handle if opened is None else _Both(handle, opened)


def _both(live: Callable[[], bool], count: Count, number: int) -> Callable[[], bool]:
    return lambda: live() and count.at(number)


class _Both:
    """A handle, and what goes with it."""

    def __init__(self, handle: Any, undo: Callable[[], None]) -> None:
        self.handle, self.undo = handle, undo

    def remove(self) -> None:
        self.handle.remove()
        self.undo()


def _opened(root: nn.Module, port: Port) -> Callable[[], None] | None:
    """The output projection of `torch.nn.MultiheadAttention` runs as a module only while its attention is watched."""
    owner = root.get_submodule(port.module.rpartition(".")[0]) if port.module else root
    if not isinstance(owner, nn.MultiheadAttention):
        return None
    look = Tap()
    Sdpa.watch(owner, look)
    return partial(Sdpa.forget, owner, look)


def _lookers_last(module: nn.Module) -> None:
    """transformers keeps hidden states by hooks that stay on the model; those have to see what ours made of them."""
    hooks = module._forward_hooks
    for number, hook in list(hooks.items()):
        if getattr(hook, "__name__", "") == "output_capturing_hook":
            hooks[number] = hooks.pop(number)


def _at_input(
    port: Port, change: Change, batch: Callable[[], int | None], live: Callable[[], bool]
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not live():
            return None
        given = _argument(port, args, kwargs)
        value = given if port.in_place else _own(given)
        new = _through(port, value, change, batch)
        if new is given:
            return None
        if port.in_place:
            value.copy_(new.reshape(value.shape))
            return None
        if isinstance(port.key, str):
            return args, {**kwargs, port.key: new}
        return (*args[: port.key], new, *args[int(port.key or 0) + 1 :]), kwargs

    return hook


def _argument(port: Port, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value = (
        kwargs.get(port.key)
        if isinstance(port.key, str)
        else args[port.key or 0]
        if len(args) > (port.key or 0)
        else None
    )
    if not torch.is_tensor(value):
        raise ModelError(
            f"{port.module} was called without the argument {port.key!r} that it had in the traced call; trace it"
            " anew with m.discover(inputs)."
        )
    return value


def _at_output(
    port: Port, change: Change, batch: Callable[[], int | None], live: Callable[[], bool]
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not live():
            return None
        value = output if port.key is None else output[port.key]
        new = _through(port, value, change, batch)
        if new is value:
            return None
        return exchanged(output, port.key, new)

    return hook


def _through(port: Port, value: Tensor, change: Change, batch: Callable[[], int | None]) -> Tensor:
    rows = batch() if port.folded else len(value) if value.ndim > 3 else None  # positions in rows and columns
    if rows is None:
        return change(value)
    whole = value.reshape(rows, -1, value.shape[-1])
    whole = whole.clone() if port.in_place and whole.requires_grad else whole  # written back, not a view of itself
    new = change(whole)
    return value if new is whole and not new.requires_grad else new.reshape(value.shape)


def _own(value: Tensor) -> Tensor:
    """A tensor of this reader's own, so that its gradient is not also that of others who read the same one."""
    return value.view_as(value) if value.requires_grad and torch.is_grad_enabled() else value


def head_results(out: nn.Module, z: Tensor, heads: tuple[int, ...]) -> Tensor:
    """What each head writes, `z_h W_O[h]` without the bias: [..., head, d] for z [..., head, d_head].

    From the weight where it is a plain matrix; otherwise (quantised, offloaded, adapters) by running the projection on
    one head's z at a time.
    """
    weight = fitting_part(getattr(out, "weight", None), z.shape[-2:].numel())
    plain = type(out) is nn.Linear or type(out).__name__ == "Conv1D"
    at_hand = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.device == z.device
    if plain and at_hand:
        by_head = (weight if type(out).__name__ == "Conv1D" else weight.T).unflatten(0, z.shape[-2:])
        return torch.einsum("...hd,hdo->...ho", z[..., list(heads), :], by_head[list(heads)])
    nothing = projected(out, torch.zeros_like(z.flatten(0, -3)[:1]))
    return torch.stack([projected(out, _only(z, head)) - nothing for head in heads], dim=-2)


def projected(out: nn.Module, z: Tensor) -> Tensor:
    """What an output projection makes of z [..., head, d_head], also where it returns more than that (I-BERT)."""
    return outer_tensor(out.forward(own_columns(getattr(out, "weight", None), z.flatten(-2))))[1]


def _only(z: Tensor, head: int) -> Tensor:
    alone = torch.zeros_like(z)
    alone[..., head, :] = z[..., head, :]
    return alone
