"""Heads of attention outside transformers' interface, seen at the borders of its modules.

z is the input of the output projection, q, k and v the outputs of their projections where the family names them (before
rotary positions, if the model has them). The pattern is available only where the family gives a recipe for the scores.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family, Projection, split
from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import ModelError
from interp.hooks.stand.attention import apply
from interp.hooks.stand.interface import BorderTap, Call


class _Now(threading.local):
    """The call that is passing, in each thread its own."""

    call: Call | None = None


class Border:
    """Turns what passes the borders of one attention module into the calls that a tap understands."""

    def __init__(self, root: nn.Module, layer: Layer, family: Family | None, tap: BorderTap) -> None:
        if family is None:
            raise ModelError(f"{layer.attention} is outside transformers' interface and no family describes it.")
        self.module = root.get_submodule(layer.attention)
        self.layer, self.family, self.tap = layer, family, tap
        self.now = _Now()

    def stand(self) -> list[Any]:
        """Hooks at the projections and at the output projection."""
        named: dict[str, list[str]] = {}
        for component in ("q", "k", "v"):
            if (projection := self._projection(component)) is not None:
                named.setdefault(projection.module, []).append(component)
        handles = [self.module.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, components in named.items():
            handles.append(self.module.get_submodule(name).register_forward_hook(self._projected(components)))
        out = self.module.get_submodule(self.family.out)
        return [*handles, out.register_forward_pre_hook(self._finish)]

    def _projection(self, component: str) -> Projection | None:
        return getattr(self.family, component)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where = None if self.family.recipe is None else self.family.recipe.mask
        mask = kwargs.get(where) if isinstance(where, str) else None if where is None else args[where]
        empty = torch.empty(0)
        self.now.call = Call(self.module, "border", lambda *a, **k: (empty, None), empty, empty, empty, mask, {})

    def _projected(self, components: list[str]) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not self.tap.live() or self.now.call is None:
                return None
            result = output
            for component in components:
                heads = self.layer.kv_heads if component in ("k", "v") else self.layer.heads
                projection = self._projection(component)
                assert projection is not None
                old = split(output, projection.view, heads)
                new = self.tap.border(component, old)
                setattr(self.now.call, component, new.transpose(1, 2))
                if new is not old or self.tap.differentiable:
                    result = output.clone() if result is output else result
                    split(result, projection.view, heads).copy_(new)
            return None if result is output else result

        return hook

    def _finish(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.tap.live() or self.now.call is None:
            return None
        call, flat = self.now.call, args[0]
        z = flat.unflatten(-1, (self.layer.heads, self.layer.d_value))
        call.function = lambda *a, **k: (z, None)
        if self.family.recipe is not None:
            call.implementation = "sdpa"
            call.arguments = {"scaling": self.family.recipe.scale, "is_causal": self.family.recipe.causal}
        call.edits = list(self.tap.attention_edits(call))
        apply(call, call.edits)
        self.tap.after(call)
        self.tap.record(call)
        self.now.call = None
        return None if call.z is z and not self.tap.differentiable else (call.z.flatten(-2), *args[1:])
