"""A run in which an output projection has lost the columns of a head, by hand and for one thread only.

What a check compares with must not come from the hook layer, and must not be seen by anybody else who runs the model
meanwhile: the projection's weight stays as it is, and a twin of it with other numbers answers for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any, cast

from torch import Tensor, nn

from interp.hooks.anatomy.spread import cut_weight, whole
from interp.hooks.anatomy.towers import Layer
from interp.hooks.stand.call import Tap
from interp.hooks.stand.standpoints import watch


def plain_weight(projection: nn.Module) -> Tensor | None:
    """The weight of a projection, where it is a plain matrix, or put together from those of several processes."""
    weight = projection._parameters.get("weight")
    if cut_weight(weight):
        return cast(Tensor, whole(weight))
    plain = type(weight) is nn.Parameter and weight.is_floating_point() and weight.ndim == 2
    return weight if plain and weight is not None and weight.device.type != "meta" else None


@contextmanager
def without(root: nn.Module, layer: Layer, head: int) -> Iterator[None]:
    """While inside, a layer's output projection does not read one head, where this thread runs it."""
    twin, own = without_head(root, layer, head), get_ident()
    projection = _projection(root, layer)

    def instead(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return twin(*args) if get_ident() == own else None

    with ExitStack() as undo:
        if layer.seen:
            undo.callback(watch(root, layer, Tap()))  # torch's own attention calls its projection only where watched
        undo.callback(projection.register_forward_hook(instead).remove)
        yield


def without_head(root: nn.Module, layer: Layer, head: int) -> Callable[..., Any]:
    """What a layer's output projection computes with zeros in the columns that read one head: its class's forward on a
    twin of it, since a module's own may be another's (accelerate's, which would go back to the whole weight)."""
    projection, columns = _projection(root, layer), slice(head * layer.d_value, (head + 1) * layer.d_value)
    weight = plain_weight(projection)
    assert weight is not None
    cut = weight.detach().clone()
    if type(projection).__name__ == "Conv1D":
        cut[columns] = 0
    else:
        cut[:, columns] = 0
    twin: Any = copy.copy(projection)
    twin._parameters = {**{name: whole(p) for name, p in projection._parameters.items()}, "weight": cut}
    return partial(type(projection).forward, twin)


def _projection(root: nn.Module, layer: Layer) -> nn.Module:
    assert layer.out is not None
    projection = root.get_submodule(layer.out)
    return getattr(projection, "_original_component", projection)
