"""The model's own softmax over the keys that a mask leaves: windows, strides, neighbourhoods, blocks.

`Masked("L5.H*", Window(64))` hides the keys that the mask does not show, beside those that the model hides already;
the weights of the others are the softmax of their scores. The masks are those of `interp.kernels.masks.symbols`, where
each says its paper: sliding and dilated windows, strides, powers of two, neighbourhoods on grids with stride, dilation
and causality, windows with shifts (Swin) and halos (HaloNet), blocks a power of two apart, tables of blocks by head
(SparseD, `find_blocks`), and one mask a head by `PerHead`; `After(1, mask)` leaves a class token out. Heads that keep
the first keys and the latest ones are `interp.edits.Streaming`.
Cost: that of the kernel that takes the mask; masks that bound what rows can reach cost as much as they show, others
are computed in tiles. Masks are of positions, not of the padding before them: in a batch padded on the left, windows of
a grid begin with the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Mask, as_mask
from interp.operators.common.operator import Operator, softmax_products


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Operator):
    """Softmax attention over the keys that a mask shows."""

    ordered = True

    mask: Mask | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask):
            raise EditError(
                f"{self!r} needs a mask of interp.kernels.masks.symbols, such as Window(64), got {self.mask!r}."
            )

    def z(self, part: Part) -> Tensor:
        own = self._hidden(part)
        z = attend(own.q, own.k, own.v, **own.arguments).z
        assert z is not None
        return z

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        return part.softmax(self._hidden(part).scores(rows))

    def products(self, part: Part) -> float:
        """Softmax attention over the keys that are left."""
        return softmax_products(self._hidden(part))

    def _hidden(self, part: Part) -> Part:
        assert self.mask is not None
        seen = self.mask if part.mask is None else as_mask(part.mask) & self.mask
        return replace(part, mask=seen)
