"""The Jacobian lens: what a residual adds to the end of the model on average, to first order, read as words.

Gurnee et al. 2026 (Verbalizable Representations Form a Global Workspace in Language Models, Transformer Circuits). For
every layer one matrix,

    J_l = mean over prompts and positions t of  sum over t' >= t of  d h_final,t' / d h_l,t,

and a residual is read as head(norm(J_l h)): where the logit lens has the identity, this has what later layers make of a
direction, at this position and the ones after it. Positions are the real ones of each row after the first `skip`, where
the residual is unlike any other, and before the last, as in their code (which skips 16). In row vectors h J_l^T. Cost:
one recorded pass and one backward pass per number of the residual's width for all layers together: 576 of them for a
model 576 wide; name few prompts. Limits: a mean of slopes: what depends on the context is averaged away; sums over
later positions, so a word may be one that is said later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.tail import last_tower
from interp.hooks.errors import InputsError
from interp.hooks.run.tape import tower_inputs
from interp.hooks.slopes.gradients import graph
from interp.patching.lenses.fitted import FittedLens, last_residual, residuals
from interp.provenance import about
from interp.records import Method, Trial, register

if TYPE_CHECKING:
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model


@torch.enable_grad()
def jacobian_lens(
    model: Model, data: Any, *, sites: str | Sequence[str] = "L*.resid_post", skip: int = 1
) -> FittedLens:
    """The lens of the residuals that `sites` mean, averaged over some prompts."""
    stack = last_tower(model.ready(), None)
    places = residuals(model, stack, sites)
    x = model.inputs(data)
    mask = _counted(tower_inputs(x, places[0]), skip)
    end = last_residual(places[0], stack)
    found = graph(
        model.module, model.anatomy, x, model.called_with(x.kwargs), sites=[*places, end], family=model.family,
        score=lambda logits: logits.flatten(1).sum(1),
    )  # fmt: skip
    matrices = _slopes(found.values[end], [found.values[s] for s in places], mask)
    nothing = torch.zeros(0, 0)
    return FittedLens(
        tuple(map(str, places)), finite(matrices, "slopes").float().cpu(),
        torch.zeros(len(places), stack.width), nothing, nothing,
        {**about(model.module, x), "method": "jacobian lens", "skip": skip, "positions": int(mask.sum())},
    )  # fmt: skip


def _counted(x: Inputs, skip: int) -> Tensor:
    """Positions that count [row, position]."""
    if skip < 0:
        raise InputsError(f"skip counts leading positions, 0 or more; got {skip}.")
    valid = x.valid.cpu()
    place = valid.int().cumsum(1)
    counted = valid & (place > skip) & (place < valid.sum(1, keepdim=True))
    if not bool(counted.any(1).all()):
        short = int((~counted.any(1)).nonzero()[0])
        raise InputsError(
            f"example {short} has no position behind the first {skip} and before the last: give longer ones."
        )
    return counted


def _slopes(last: Tensor, places: Sequence[Tensor], mask: Tensor) -> Tensor:
    """[place, d, d], rows by what is read, columns by what comes out: `h @ J`."""
    here = mask.to(last.device)
    count = mask.sum(1).double()
    total = (last * here[..., None]).sum((0, 1))
    made: list[list[Tensor]] = [[] for _ in places]
    for n in range(last.shape[-1]):
        slopes = torch.autograd.grad(total[n], places, retain_graph=True, allow_unused=True)
        for parts, slope, place in zip(made, slopes, places, strict=True):
            one = torch.zeros_like(place) if slope is None else slope
            rows = (one.double().cpu() * mask[..., None]).sum(1) / count[:, None]
            parts.append(rows.mean(0))
    return torch.stack([torch.stack(parts, 1) for parts in made])


def _trial(t: Trial) -> FittedLens:
    return jacobian_lens(t.model, t.base, sites=f"{t.tower}L0.resid_post", skip=0)


register(
    Method(
        "interp.patching.jacobian_lens",
        number="mean slope of the last residual by an earlier one, as a matrix that words are read through",
        shown="none",
        papers=(),
        values=None,
        passes=lambda t: 1 + t.breadth / 2,
        example=_trial,
    )
)
