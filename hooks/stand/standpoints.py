"""Where the attention of a layer is seen, and standing there.

interface  transformers' attention interface (`hooks/stand/interface.py`): q, k, v, mask and z of every call
sdpa       torch's fused attention (`hooks/stand/sdpa.py`): the same, for models outside that interface
registry   a backend of diffusers' registry (`hooks/denoisers/backends.py`), watched together with the former
border     the borders of projections (`hooks/stand/boundary.py`): z, and what a family says of q, k, v and the scores

The trace tries them in this order, and a layer says which one holds it (`Layer.standpoint`). A layer that is one pass
of a module is met in that pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import ModelError
from interp.hooks.passes import Count
from interp.hooks.stand.boundary import Border
from interp.hooks.stand.call import BorderTap, Call, Tap
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.program import Standing
from interp.hooks.stand.sdpa import Sdpa

Undo = Callable[[], None]


def watch(root: nn.Module, layer: Layer, tap: Tap) -> Undo:
    """Send the attention calls of a layer through a tap; refused where they are not seen. Returns what undoes it."""
    if layer.share is not None:
        raise ModelError(
            f"{layer.attention} has {layer.heads} heads in {layer.share.of} processes, and {tap} reads the calls of"
            " one: recordings, edits and statistics gather the heads of all processes; this call does not. Run the"
            " model in one process."
        )
    module = root.get_submodule(layer.attention)
    if layer.nth is not None:
        return _in_its_pass(layer, root, tap, lambda one: watch(root, replace(layer, nth=None), one))
    if layer.standpoint == "interface":
        Switch.watch(module, tap)
        return partial(Switch.forget, module, tap)
    if layer.standpoint in ("sdpa", "registry"):
        Sdpa.watch(module, tap)
        return partial(Sdpa.forget, module, tap)
    raise ModelError(
        f"the attention call of {layer.attention} is not seen: it uses neither transformers' attention interface nor"
        " torch's scaled_dot_product_attention."
    )


def watch_border(root: nn.Module, layer: Layer, family: Family | None, tap: BorderTap) -> Undo:
    """The same, at the borders of its projections where its calls are not seen."""
    if layer.seen:
        return watch(root, layer, tap)
    if layer.nth is not None:
        return _in_its_pass(layer, root, tap, lambda one: Border.watch(root, layer, family, one))
    return Border.watch(root, layer, family, tap)


def _in_its_pass(layer: Layer, root: nn.Module, tap: Tap, watched: Callable[[_OfPass], Undo]) -> Undo:
    assert layer.nth is not None
    count, uncount = Count.watch(root, layer.nth, tap.live)
    undo = watched(_OfPass(tap, count, layer.nth.number))

    def both() -> None:
        undo()
        uncount()

    return both


class _OfPass(BorderTap):
    """A tap that is there in one pass of its module."""

    def __init__(self, tap: Tap, count: Count, number: int) -> None:
        self.tap, self.count, self.number = tap, count, number

    def __str__(self) -> str:
        return str(self.tap)

    def live(self) -> bool:
        return self.tap.live() and self.count.at(self.number)

    @property
    def differentiable(self) -> bool:
        return isinstance(self.tap, BorderTap) and self.tap.differentiable

    def before(self, call: Call) -> None:
        call.nth = self.number
        self.tap.before(call)

    def programs(self, call: Call) -> Sequence[Standing]:
        return self.tap.programs(call)

    def attends(self) -> bool:
        return self.tap.attends()

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        self.tap.attend(call, inner)

    def after(self, call: Call) -> None:
        self.tap.after(call)

    def record(self, call: Call) -> None:
        call.nth = self.number
        self.tap.record(call)

    def border(self, component: str, value: Tensor) -> Tensor:
        assert isinstance(self.tap, BorderTap)
        return self.tap.border(component, value)
