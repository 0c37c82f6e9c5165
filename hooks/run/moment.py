"""Where a run is: which columns of the inputs the current forward pass computes, in which phase of generating."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import Edit, in_steps
from interp.hooks.errors import EditError, InputsError
from interp.hooks.inputs.arguments import main_embeds, main_ids
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import fitting, tower_inputs
from interp.hooks.sites import KV, Site


class Moment(threading.local):
    """The inputs of the run, and how far a cache has already carried it; each thread that runs has its own.

    Positions are columns of the prompt as it was given, so that an edit means the same token in every step of
    generating; a token generated later is in no position set, and in reach of edits that name no positions.
    `cross` says of a site that its layer is a cross-attention, whose keys are another tower's.
    """

    def __init__(
        self,
        inputs: Inputs | None,
        describe: Callable[[Mapping[str, Any]], Inputs] | None,
        guidance: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None,
    ) -> None:
        self.inputs, self.guidance = inputs, guidance
        self.given = inputs is not None
        self.describe = describe
        self.offset = 0
        self.cache: Any = None
        """What the call goes on from."""
        self.step = -1
        self.calls = -1
        """The call of the model that runs, counted from 0."""
        self._call: Mapping[str, Any] = {}
        self._branches: tuple[str, ...] | None = None

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass of the whole model starts."""
        self.cache = kwargs.get("past_key_values")
        cached = getattr(self.cache, "get_seq_length", None)
        self.calls += 1
        self.offset = int(cached()) if cached is not None else 0
        self.step = self.step + 1 if self.offset else -1
        first = "input_ids" if self.guidance is None else "hidden_states"
        self._call, self._branches = ({first: args[0], **kwargs} if args else kwargs), None
        if not self.given and self.offset == 0:
            self.inputs = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The branch of guidance of each row of this call of a denoiser."""
        if self.guidance is None:
            raise EditError("branches are those of a denoiser's guidance, and this model is none.")
        if self._branches is None:
            self._branches = self.guidance(self._call)
        return self._branches

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
            if self.offset:
                raise InputsError(
                    "positions, roles and key sets are those of the prompt, and this call continues from a cache whose"
                    " prompt interp did not see: run the prompt inside the same context, or use m.generate(...)."
                )
            self.inputs = self.describe(self._call)
        return self.inputs

    def applies(self, edit: Edit) -> bool:
        """Whether this phase and step is one of the edit's."""
        decoding = self.offset > 0
        if not in_steps(edit.steps, self.calls):
            return False
        if edit.branch is not None and edit.branch not in self.branches:
            return False
        if edit.step is not None:
            return decoding and edit.step == self.step
        return edit.phase == "both" or edit.phase == ("decode" if decoding else "prefill")

    def _grows(self, site: Site) -> bool:
        """Whether the site's tower is the one that a cache carries on."""
        return site.tower in (None, "text", "decoder", "cross")

    def _start(self, site: Site, length: int) -> int:
        """The column of the first computed position; logits may be computed for the last ones only."""
        if site.component == "logits":
            return max(0, self._end() - length)
        return self.offset if self._grows(site) else 0

    def _key_start(self, site: Site, length: int, *, cross: bool) -> int:
        """The column of the first key: a sliding window's cache has dropped those before it."""
        return 0 if cross or not self._grows(site) else max(0, self._end() - length)

    def _end(self) -> int:
        """The column after the last computed one."""
        decoder = (self._call.get(name) for name in ("decoder_input_ids", "decoder_inputs_embeds"))
        for found in (*decoder, main_ids(self._call, "text"), main_embeds(self._call)):
            if torch.is_tensor(found):
                return self.offset + int(found.shape[1])
        if self.offset:
            raise InputsError(
                "this call continues from a cache, and interp cannot tell how many tokens it adds from"
                f" {', '.join(self._call)}."
            )
        return 0

    def mask(self, spec: Positions, site: Site, length: int, *, onward: bool = False) -> Tensor:
        """The positions of a specification among the `length` columns that are being computed; `onward` are those
        after the prompt too."""
        whole = fitting(tower_inputs(self.known(), site), length).mask(spec)
        start = self._start(site, length)
        self._fits(site, whole, start + length, exact=not self.offset)
        return _columns(whole, start, length, beyond=onward and self._grows(site))

    def keys(self, spec: Positions, site: Site, length: int, *, cross: bool, onward: bool = False) -> Tensor:
        """The positions of a specification among all `length` keys, cached ones included."""
        cross = cross or site.tower == "cross"
        if isinstance(spec, str) and spec == "all":
            return torch.ones(self.known().batch, length, dtype=torch.bool)
        whole = tower_inputs(self.known(), replace(site, component="k"), cross=cross).mask(spec)
        start = self._key_start(site, length, cross=cross)
        self._fits(site, whole, start + length, exact=cross or not self._grows(site))
        return _columns(whole, start, length, beyond=onward and self._grows(site) and not cross)

    def first_key(self, site: Site, length: int, *, cross: bool) -> Tensor:
        """[example], which of `length` keys is the first real token; negative where a cache has dropped it."""
        valid = tower_inputs(self.known(), replace(site, component="k"), cross=cross).valid
        return valid.int().argmax(1) - self._key_start(site, length, cross=cross)

    @staticmethod
    def _fits(site: Site, whole: Tensor, end: int, *, exact: bool) -> None:
        if end < whole.shape[1] or (exact and end > whole.shape[1]):
            raise InputsError(
                f"{site} has {end} positions here, but its tower's inputs have {whole.shape[1]} columns (windows,"
                " images run one by one, or queries that are not tokens): positions and key sets have no meaning there."
            )

    def valid(self, site: Site, rows: int, length: int, *, cross: bool) -> Tensor | None:
        """Which of the computed positions are real; None where all are."""
        whole = fitting(tower_inputs(self.known(), site, cross=cross), length).valid
        if bool(whole.all()):
            return None
        keys = site.component in KV
        start = self._key_start(site, length, cross=cross) if keys else self._start(site, length)
        found = _columns(whole, start, length, beyond=True)
        if found.shape != (rows, length):
            raise InputsError(
                f"{site} has {rows} rows of {length} positions here, but its tower's inputs have"
                f" {list(whole.shape)}, some of them padding: which of these are real is not known."
            )
        return found

    def where(
        self, edit: Edit, site: Site, rows: int, length: int, device: torch.device, *, keys: bool, cross: bool
    ) -> Tensor | None:
        """[row, position] of what an edit touches now (`keys`: as keys); None for everything."""
        if edit.positions is None and edit.rows is None and edit.branch is None:
            return None
        found = torch.ones(rows, length, dtype=torch.bool)
        if edit.positions is not None:
            spec = (
                self.keys(edit.positions, site, length, cross=cross, onward=edit.onward)
                if keys
                else self.mask(edit.positions, site, length, onward=edit.onward)
            )
            if spec.shape != found.shape:
                raise EditError(
                    f"{edit!r}: positions are {list(spec.shape)} [row, position], but {site} has {list(found.shape)}"
                    " here (windows, or images folded into rows); leave positions out."
                )
            found = spec.cpu()
        if edit.rows is not None:
            bad = [r for r in edit.rows if not 0 <= r < rows]
            if bad:
                raise EditError(f"{edit!r}: no row {bad[0]} in a batch of {rows}.")
            chosen = torch.zeros(rows, dtype=torch.bool)
            chosen[list(edit.rows)] = True
            found = found & chosen[:, None]
        if edit.branch is not None:
            found = found & self._of_branch(edit, rows)[:, None]
        return found.to(device)

    def _of_branch(self, edit: Edit, rows: int) -> Tensor:
        """Bool [row]: those of the edit's branch."""
        if len(self.branches) != rows:
            raise EditError(
                f"{edit!r}: the denoiser was called with {len(self.branches)} rows and attends with {rows} here, so"
                " which of them are of a branch is not known."
            )
        return torch.tensor([branch == edit.branch for branch in self.branches])


def _columns(mask: Tensor, start: int, length: int, *, beyond: bool = False) -> Tensor:
    """Columns start .. start + length; those beyond the prompt get the value `beyond`."""
    part = mask[:, start : start + length]
    missing = length - part.shape[1]
    return torch.nn.functional.pad(part, (0, missing), value=beyond) if missing > 0 else part
