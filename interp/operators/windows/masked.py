"""The model's own softmax over the keys that a mask leaves: windows, strides, neighbourhoods, blocks.

`Masked("L5.H*", Window(64))` hides the keys that the mask does not show, in addition to those that the model hides
already; the weights of the others are the softmax of their scores. The masks are those of
`interp.kernels.masks.symbols`, where each says its paper: sliding and dilated windows, strides, powers of two,
neighbourhoods on grids with stride, dilation and causality, windows with shifts (Swin) and halos (HaloNet), blocks a
power of two apart, tables of blocks by head (SparseD, `find_blocks`), and one mask a head by `PerHead`; `After(1,
mask)` leaves a class token out. Heads that keep the first keys and the latest ones are `interp.edits.Streaming`. Cost:
that of the kernel that takes the mask, which skips what is outside of a run of keys; where rows see keys here and
there, blocks that they see are gathered, 256 rows by 128 keys. Masks are of positions, not of the padding before them:
in a batch padded on the left, windows of a grid begin with the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interp.hooks.errors import EditError
from interp.hooks.stand.near import mask_between
from interp.hooks.stand.part import Part
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import EMPTY, Mask, as_mask
from interp.operators.common.operator import Operator, places, softmax_numbers, softmax_products

ROWS, KEYS = 256, 128
"""Rows that are computed together where keys are gathered, and keys that are gathered or left out together."""
SPARSE = 0.6
"""Keys are gathered where at most this share of the blocks is seen."""


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Operator):
    """Softmax attention over the keys that a mask shows."""

    ordered = True
    fast = True

    mask: Mask | None = None
    """The mask, such as `Window(64)` of `interp.kernels.masks.symbols`. It has to be given."""

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask):
            raise EditError(
                f"{self!r} needs a mask of interp.kernels.masks.symbols, such as Window(64), got {self.mask!r}."
            )

    def z(self, part: Part) -> Tensor:
        own = self._hidden(part)
        kept = _kept(own)
        if kept is not None:
            return torch.cat([_gathered(own, row, some) for row, some in enumerate(kept)], 2)
        z = attend(own.q, own.k, own.v, **own.arguments).z
        assert z is not None
        return z

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        return part.softmax(self._hidden(part).scores(rows))

    def products(self, part: Part) -> float:
        """Softmax attention over the keys that are left."""
        return softmax_products(self._hidden(part))

    def numbers(self, part: Part) -> float:
        """The keys and values that the last row is shown."""
        return softmax_numbers(self._hidden(part))

    def _hidden(self, part: Part) -> Part:
        assert self.mask is not None
        seen = self.mask if part.mask is None else as_mask(part.mask) & self.mask
        return replace(part, mask=seen)


def _kept(part: Part) -> Tensor | None:
    """Bool [block of rows, block of keys]: those that some row sees; None where they need not be gathered: few rows,
    one run of keys a row, most of which the kernels skip."""
    queries, keys, mask = part.q.shape[2], part.k.shape[2], as_mask(part.mask)
    if queries <= ROWS or mask.interval(places(part), keys) is not None:
        return None
    some = (mask.classes(queries, keys, rows=ROWS, columns=KEYS) != EMPTY).flatten(0, 1).any(0)
    return some if float(some.float().mean()) <= SPARSE else None


def _gathered(part: Part, row: int, some: Tensor) -> Tensor:
    """z of one block of rows over the blocks of keys that it sees."""
    queries, length, device = part.q.shape[2], part.k.shape[2], part.q.device
    rows = torch.arange(row * ROWS, min((row + 1) * ROWS, queries), device=device)
    inside = some.repeat_interleave(KEYS)[:length].to(device)
    if not bool(inside.any()):
        return part.v.new_zeros(*part.q.shape[:2], len(rows), part.v.shape[-1])
    keys = inside.nonzero().flatten()
    seen = mask_between(part.mask, places(part)[rows], keys)
    if seen.tensor.dtype == torch.bool and part.bias is None and part.softcap is None and part.sinks is None:
        return _by_torch(part, rows, keys, seen.tensor)
    own = {**part.arguments, "mask": seen}
    if part.bias is not None:
        own["bias"] = part.bias.expand(-1, -1, queries, length)[:, :, rows][..., keys]
    z = attend(part.q[:, :, rows], part.k[:, :, keys], part.v[:, :, keys], **own).z
    assert z is not None
    return z


def _by_torch(part: Part, rows: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    """The same by torch's attention, which is faster for a few hundred rows under a mask in numbers."""
    k, v = (x[:, :, keys].repeat_interleave(part.group, 1) for x in (part.k, part.v))
    blind = ~seen.any(-1, keepdim=True)
    z = scaled_dot_product_attention(part.q[:, :, rows], k, v, attn_mask=seen | blind, scale=part.scale)
    return z.masked_fill(blind, 0.0)
