"""Attention weights a few rows at a time: read while the model runs, and forgotten.

The weights of the rows are computed outside of the model from what the call received, edits included, so any definition
over a pattern can be summed up at any length: at no time are more than a few million of its numbers in memory. Where
heads are in several processes, the rows of all of them are brought to each.
Cost: one forward pass and about one more attention per layer. Limits: attention that goes through transformers'
interface or whose family gives a recipe for its scores; no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.spread import Order, axis_of, layer_here
from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.errors import InputsError, NotFired
from interp.hooks.sites import Site
from interp.hooks.stand.attention import pattern_of
from interp.hooks.stand.call import BorderTap, Call, row_chunks
from interp.hooks.stand.standpoints import watch_border


@dataclass(frozen=True, eq=False)
class Rows:
    """The weights [example, head, row, key] of some query rows of one layer, and which columns the rows are."""

    site: Site
    at: Tensor
    weights: Tensor


Read = Callable[[Rows], None]


class _Reader(BorderTap):
    """Stands at one layer's attention."""

    def __init__(self, site: Site, layer: Layer, shape: Sequence[int], read: Read) -> None:
        self.site, self.layer, self.shape, self.read, self.ran = site, layer, tuple(shape), read, False
        self.thread = get_ident()

    def record(self, call: Call) -> None:
        batch, _, queries, _ = call.q.shape
        if (batch, queries) != self.shape or self.ran:
            raise InputsError(
                f"{self.site}: expected one attention call of {self.shape[0]} x {self.shape[1]} positions, as the"
                f" inputs have; this one is {batch} x {queries}: towers that attend in windows or one picture at a time"
                " are read with one picture and full attention only."
            )
        self.ran = True
        for at in row_chunks(call):
            rows = torch.zeros(batch, queries, dtype=torch.bool, device=call.q.device)
            rows[:, at] = True
            found = pattern_of(call, "pattern", axis_of(self.layer, self.site), rows)
            whole = found if self.layer.share is None else Order.of(self.layer, self.site).gathered(found, 1)
            self.read(Rows(self.site, at, whole))


def read_weights(
    root: nn.Module,
    anatomy: Anatomy,
    sites: Sequence[Site],
    forward: Callable[[], None],
    read: Read,
    *,
    shape: Sequence[int],
    family: Family | None = None,
) -> None:
    """Run `forward` and hand `read` the weights of every site's attention; `shape` is [example, position]."""
    readers = [_Reader(site, anatomy.layer(site), shape, read) for site in sites]
    with ExitStack() as undo:
        for reader in readers:
            _stand(root, layer_here(reader.layer), reader, family, undo)
        forward()
    if silent := [str(reader.site) for reader in readers if not reader.ran]:
        raise NotFired(f"no attention call was seen at {silent[0]} for these inputs.")


def _stand(root: nn.Module, layer: Layer, reader: _Reader, family: Family | None, undo: ExitStack) -> None:
    if not layer.seen and (family is None or family.recipe is None):
        raise InputsError(
            f"{reader.site}: this family's attention call is not seen and it gives no recipe for its scores, so its"
            " weights cannot be read."
        )
    undo.callback(watch_border(root, layer, family, reader))
