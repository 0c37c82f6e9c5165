"""The edits of one run: each applied where it says, and noted as fired by whoever applied it, when it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.edits.edits import ValueChange, ValueEdit
from interp.hooks.edits.placing import Placed
from interp.hooks.errors import NotFired
from interp.hooks.run.moment import Moment
from interp.hooks.run.tape import crosses, head_axis, head_index
from interp.hooks.sites import KV


class Editor:
    """Applies edits to the tensors at their sites, and knows which of them did their work."""

    def __init__(self, anatomy: Anatomy, edits: Sequence[Placed], moment: Moment) -> None:
        self.anatomy, self.edits, self.moment = anatomy, edits, moment
        self.fired: dict[tuple[int, str | None, int | None], int] = defaultdict(int)

    def changed(self, placed: Placed, x: Tensor, *, axis: int = 1, change: ValueChange | None = None) -> Tensor:
        """x with the edit applied at its positions, rows and heads; the same object where it does not apply now.
        `change` takes the place of the edit's own where that needs to see more than x."""
        edit, site = placed.edit, placed.site
        assert isinstance(edit, ValueEdit)
        if not self.moment.applies(edit):
            return x
        rows, length, cross = x.shape[0], x.shape[axis], crosses(self.anatomy, site)
        where = self.moment.where(edit, site, rows, length, x.device, keys=site.component in KV, cross=cross)
        if where is not None and not bool(where.any()):
            return x
        heads = head_index(self.anatomy, site, x.device)
        part = x if heads is None else x.index_select(head_axis(site.component), heads)
        valid = self.moment.valid(site, rows, length, cross=cross) if edit.needs_valid else None
        make = change or edit.change
        new = (make if placed.lift is None else placed.lift.around(make, edit))(part, valid).to(x.dtype)
        if where is not None:
            shape = [1] * x.ndim
            shape[0], shape[axis] = where.shape
            new = torch.where(where.view(shape), new, part)
        self.note(placed)
        return new if heads is None else x.index_copy(head_axis(site.component), heads, new)

    @staticmethod
    def _key(placed: Placed) -> tuple[int, str | None, int | None]:
        return id(placed.edit), placed.site.tower, placed.site.layer

    def note(self, placed: Placed) -> None:
        """An edit did its work at its layer."""
        self.fired[self._key(placed)] += 1

    def check_fired(self) -> None:
        """Raise for every edit that never changed anything it was told to change."""
        silent = [placed for placed in self.edits if not self.fired[self._key(placed)]]
        if silent:
            raise NotFired(
                "these edits never fired: "
                + "; ".join(f"{p.edit!r} at {p.site}" for p in silent)
                + ". Check that their layer runs, and that their pass, phase or step is reached."
            )
