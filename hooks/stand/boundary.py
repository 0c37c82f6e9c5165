"""Heads of attention outside transformers' interface, seen at the borders of its modules.

z is the input of the output projection, q, k and v the outputs of their projections where the family names them (before
rotary positions, if the model has them). The pattern is available only where the family gives a recipe for the scores.
All who stand at one attention share its border, so that their calls go through them together as in the interface.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family, Projection, split
from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import ModelError
from interp.hooks.stand.attention import onward
from interp.hooks.stand.call import BorderTap, Call
from interp.hooks.stand.output import exchanged, outer_tensor


class _Now(threading.local):
    """The call that is passing, in each thread its own."""

    call: Call | None = None


def has(module: nn.Module, name: str) -> bool:
    """Whether a module has a part of this name: of one family, modules may project differently (Reformer)."""
    return any(part == name for part, _ in module.named_modules())


class Border:
    """Turns what passes the borders of one attention module into the calls that taps understand."""

    _lock = threading.RLock()
    _known: ClassVar[weakref.WeakKeyDictionary[nn.Module, Border]] = weakref.WeakKeyDictionary()

    def __init__(self, root: nn.Module, layer: Layer, family: Family) -> None:
        self.layer, self.family = layer, family
        self.taps: list[BorderTap] = []
        self.now = _Now()
        self.handles = self._stand(root, root.get_submodule(layer.attention))

    @classmethod
    def watch(cls, root: nn.Module, layer: Layer, family: Family | None, tap: BorderTap) -> Callable[[], None]:
        """Send the attention calls of a layer through `tap`; returns what undoes it."""
        if family is None:
            raise ModelError(f"{layer.attention} is outside transformers' interface and no family describes it.")
        module = root.get_submodule(layer.attention)
        with cls._lock:
            border = cls._known.get(module)
            if border is None:
                border = cls._known[module] = cls(root, layer, family)
            border.taps = [*border.taps, tap]
        return lambda: cls._forget(module, tap)

    @classmethod
    def _forget(cls, module: nn.Module, tap: BorderTap) -> None:
        """The last one out takes the hooks off."""
        with cls._lock:
            border = cls._known.get(module)
            if border is None:
                return
            border.taps = [other for other in border.taps if other is not tap]
            if not border.taps:
                cls._known.pop(module)
                for handle in border.handles:
                    handle.remove()

    def _live(self) -> list[BorderTap]:
        return [tap for tap in self.taps if tap.live()]

    def _stand(self, root: nn.Module, module: nn.Module) -> Sequence[Any]:
        """Hooks at the projections and at the output projection."""
        named: dict[str, list[str]] = {}
        for component in ("q", "k", "v"):
            if (projection := self._projection(component)) is not None and has(module, projection.module):
                named.setdefault(projection.module, []).append(component)
        handles = [module.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, components in named.items():
            handles.append(module.get_submodule(name).register_forward_hook(self._projected(components)))
        return [*handles, module.get_submodule(self.family.out).register_forward_pre_hook(self._finish)]

    def _projection(self, component: str) -> Projection | None:
        return getattr(self.family, component)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where = None if self.family.recipe is None else self.family.recipe.mask
        mask = kwargs.get(where) if isinstance(where, str) else None if where is None else args[where]
        empty = torch.empty(0)
        self.now.call = Call(module, "border", lambda *a, **k: (empty, None), empty, empty, empty, mask, {})

    def _projected(self, components: list[str]) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            taps = self._live()
            if not taps or self.now.call is None:
                return None
            key, made = outer_tensor(output)
            result = made
            for component in components:
                heads = self.layer.kv_heads if component in ("k", "v") else self.layer.heads
                projection = self._projection(component)
                assert projection is not None
                new = old = _flat(split(made, projection.view, heads))
                for tap in taps:
                    new = tap.border(component, new)
                setattr(self.now.call, component, new.transpose(1, 2))
                if new is not old or any(tap.differentiable for tap in taps):
                    result = made.clone() if result is made else result
                    part = split(result, projection.view, heads)
                    part.copy_(new.reshape(part.shape))
            return None if result is made else exchanged(output, key, result)

        return hook

    def _finish(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        taps = self._live()
        if not taps or self.now.call is None:
            return None
        call, flat = self.now.call, args[0]
        z = _flat(flat.unflatten(-1, (self.layer.heads, self.layer.d_value)))
        call.function = lambda *a, **k: (z, None)
        if self.family.recipe is not None:
            call.implementation = "sdpa"
            call.arguments = {"scaling": self.family.recipe.scale, "is_causal": self.family.recipe.causal}
        onward(call, taps)
        self.now.call = None
        if call.z is z and not any(tap.differentiable for tap in taps):
            return None
        return call.z.reshape(flat.shape), *args[1:]


def _flat(x: Tensor) -> Tensor:
    """[batch, position, head, d] of a tensor whose positions may be in rows and columns."""
    return x if x.ndim == 4 else x.flatten(1, -3)
