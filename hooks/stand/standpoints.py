"""Where the attention of a layer is seen, and standing there.

interface  transformers' attention interface (`hooks/stand/interface.py`): q, k, v, mask and z of every call
sdpa       torch's fused attention (`hooks/stand/sdpa.py`): the same, for models outside that interface
border     the borders of projections (`hooks/stand/boundary.py`): z, and what a family says of q, k, v and the scores

The trace tries them in this order, and a layer says which one holds it (`Layer.standpoint`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Layer
from interp.hooks.errors import ModelError
from interp.hooks.stand.boundary import Border
from interp.hooks.stand.call import BorderTap, Tap
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.sdpa import Sdpa

Undo = Callable[[], None]


def watch(root: nn.Module, layer: Layer, tap: Tap) -> Undo:
    """Send the attention calls of a layer through a tap; refused where they are not seen. Returns what undoes it."""
    module = root.get_submodule(layer.attention)
    if layer.standpoint == "interface":
        Switch.watch(module, tap)
        return partial(Switch.forget, module, tap)
    if layer.standpoint == "sdpa":
        Sdpa.watch(module, tap)
        return partial(Sdpa.forget, module, tap)
    raise ModelError(
        f"the attention call of {layer.attention} is not seen: it goes neither through transformers' attention"
        " interface nor through torch's scaled_dot_product_attention."
    )


def watch_border(root: nn.Module, layer: Layer, family: Family | None, tap: BorderTap) -> Undo:
    """The same, at the borders of its projections where its calls are not seen."""
    return watch(root, layer, tap) if layer.seen else Border.watch(root, layer, family, tap)
