"""Where a run is: which columns of the inputs the current forward pass computes, in which phase of generating."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits import Edit
from interp.hooks.errors import EditError, InputsError
from interp.hooks.inputs import Inputs, Positions
from interp.hooks.sites import Site
from interp.hooks.tape import tower_inputs


class Moment:
    """The inputs of the run, and how far a cache has already carried it.

    Positions are columns of the prompt as it was given, so that an edit means the same token in every step of generating;
    a token generated later is in no position set, and in reach of edits that name no positions.
    """

    def __init__(self, inputs: Inputs | None, describe: Callable[[Mapping[str, Any]], Inputs] | None) -> None:
        self.inputs = inputs
        self.given = inputs is not None
        self.describe = describe
        self.offset = 0
        self.step = -1
        self._call: Mapping[str, Any] = {}

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass of the whole model starts."""
        cache = kwargs.get("past_key_values")
        self.offset = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
        self.step = self.step + 1 if self.offset else -1
        self._call = {"input_ids": args[0], **kwargs} if args else kwargs
        if not self.given and self.offset == 0:
            self.inputs = None

    def rows(self) -> int | None:
        """Rows in this forward pass."""
        for value in self._call.values():
            if torch.is_tensor(value):
                return int(value.shape[0])
        return None

    def known(self) -> Inputs:
        """The prompt's inputs, described from the call itself where nobody prepared them."""
        if self.inputs is None:
            if self.describe is None:
                raise InputsError(
                    "positions, roles and key sets need to know the inputs: pass what m.prepare(...) returns."
                )
            self.inputs = self.describe(self._call)
        return self.inputs

    def applies(self, edit: Edit) -> bool:
        """Whether this phase and step is one of the edit's."""
        decoding = self.offset > 0
        if edit.step is not None:
            return decoding and edit.step == self.step
        return edit.phase == "both" or edit.phase == ("decode" if decoding else "prefill")

    def _start(self, site: Site) -> int:
        return self.offset if site.tower in (None, "text", "decoder", "cross") else 0

    def mask(self, spec: Positions, site: Site, length: int) -> Tensor:
        """The positions of a specification among the `length` columns that are being computed."""
        whole = tower_inputs(self.known(), site).mask(spec)
        return _columns(whole, self._start(site), length)

    def keys(self, spec: Positions, site: Site, length: int) -> Tensor:
        """The positions of a specification among all `length` keys, cached ones included."""
        side = site if site.tower != "cross" else Site("cross", site.layer, "k")
        whole = tower_inputs(self.known(), side).mask(spec)
        if spec == "all":
            return torch.ones(whole.shape[0], length, dtype=torch.bool)
        return _columns(whole, 0, length)

    def valid(self, site: Site, rows: int, length: int) -> Tensor | None:
        """Which of the computed positions are real, where that is known and has this shape."""
        if self.inputs is None and self.describe is None:
            return None
        valid = tower_inputs(self.known(), site).valid
        if self._start(site) or valid.shape != (rows, length):
            return None
        return valid

    def where(
        self, edit: Edit, site: Site, rows: int, length: int, device: torch.device, *, keys: bool = False
    ) -> Tensor | None:
        """[row, position] of what an edit touches now; None for everything."""
        if edit.positions is None and edit.rows is None:
            return None
        found = torch.ones(rows, length, dtype=torch.bool)
        if edit.positions is not None:
            spec = self.keys(edit.positions, site, length) if keys else self.mask(edit.positions, site, length)
            if spec.shape != found.shape:
                raise EditError(
                    f"{edit!r}: positions are {list(spec.shape)} [row, position], but {site} has {list(found.shape)} here (windows, or images folded into rows); leave positions out."
                )
            found = spec.cpu()
        if edit.rows is not None:
            bad = [r for r in edit.rows if not 0 <= r < rows]
            if bad:
                raise EditError(f"{edit!r}: no row {bad[0]} in a batch of {rows}.")
            chosen = torch.zeros(rows, dtype=torch.bool)
            chosen[list(edit.rows)] = True
            found = found & chosen[:, None]
        return found.to(device)


def _columns(mask: Tensor, start: int, length: int) -> Tensor:
    """Columns start .. start + length, those beyond the prompt False."""
    part = mask[:, start : start + length]
    missing = length - part.shape[1]
    return torch.nn.functional.pad(part, (0, missing)) if missing > 0 else part
