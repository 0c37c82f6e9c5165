"""The loss of a model on texts, bare and with heads that attend to every token alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.sets import mask_edits
from interp.hooks.drive.blocks import called, keeps
from interp.hooks.drive.recording import Recording
from interp.hooks.drive.tail import Readout, last_tower
from interp.hooks.edits.edits import Edit, Scale
from interp.hooks.errors import ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of
from interp.long.needles import ids_of

if TYPE_CHECKING:
    from interp.model import Model

Weights = Literal["visible", "full"]
NUMBERS = 2**24
"""Of logits at a time."""


def masked_alike(heads: Sequence[str], x: Inputs, weights: Weights = "visible") -> list[Edit]:
    """Edits that make the heads attend to every token alike."""
    uniform = mask_edits(heads, "uniform")
    if weights == "visible":
        return uniform
    seen = x.valid.cumsum(1).double()
    share = (seen / x.valid.sum(1, keepdim=True))[:, :, None, None]
    return [*uniform, *(Scale(f"{edit.site}.z", share) for edit in uniform)]


def losses(model: Model, x: Inputs, edits: Sequence[Edit] = ()) -> Tensor:
    """[text]: mean cross-entropy of the tokens after the first; NaN for a text that has no others."""
    ids, valid = ids_of(x).cpu(), x.valid.cpu()
    counted = valid[:, 1:] & valid[:, :-1]
    row, column = counted.nonzero(as_tuple=True)
    total = torch.zeros(len(ids), dtype=torch.double)
    for some, logits in _logits(model, x, edits, row, column):
        said = ids[row[some], column[some] + 1].to(logits.device)
        lost = torch.nn.functional.cross_entropy(logits.float(), said, reduction="none").double().cpu()
        finite(lost, "losses")
        total.index_add_(0, row[some], lost)
    return total / counted.sum(1).double()


def _logits(
    model: Model, x: Inputs, edits: Sequence[Edit], row: Tensor, column: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Places, and their logits [place, word], a stretch after the other: those of a whole batch are larger than all
    else in a pass, and a loss makes as much again of them. Where they are not plainly made from the last residual
    the model makes all of them itself."""
    end = keeps(model.module, torch.tensor([x.length - 1]))
    left, logits = _run(model, x, edits, end)
    run = Recording(last_tower(model.anatomy, None), (), {}, left, logits, end, *left.shape[:2])
    readout = Readout(model.module, run, {})
    if end is not None and not readout.by_position:
        _, logits = _run(model, x, edits, None)
    for some in torch.arange(len(row)).split(max(1, NUMBERS // logits.shape[-1])):
        if readout.by_position:
            with torch.no_grad():
                yield some, readout.read(readout.final(left[row[some], column[some]][None]), None)[0]
        else:
            yield some, logits[row[some], column[some]]


def _run(model: Model, x: Inputs, edits: Sequence[Edit], kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """The last residual, and the logits of the `kept` columns or of all."""
    tower = last_tower(model.anatomy, None)
    last = Site(spelled(model.anatomy, tower), tower.layers[-1].index, "resid_post")
    session = Session(model.module, model.anatomy, wish=Wish([last]), inputs=x, family=model.family)
    with model.edited(edits), session, torch.no_grad():
        logits = logits_of(model.module(**called(model.module, model.called_with(x.kwargs), kept)))
    if logits is None:
        raise ModelError(f"{type(model.module).__name__} has no logits, so it has no loss on a text.")
    return session.recorded()[last], logits
