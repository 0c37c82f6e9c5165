"""The tuned lens: per layer an affine map that makes the logit lens say what the model will say in the end.

Belrose et al. 2023 (arXiv 2303.08112): earlier residuals are in another basis than the last, so each gets a translator,

    lens_l(h) = head(norm(h + h A_l + b_l)),    A_l, b_l = argmin of mean KL( model's next word || lens_l(h_l) )

over rows of text, begun at A = b = 0, which is the logit lens. They train for 250 steps of SGD on a corpus; here the
rows of a few texts are held in memory and the same loss is taken down by Adam over all of them at once, from the better
of two starts, nothing or the ridge regression of the last residual on h_l, and the best step is kept, which takes
seconds on a small model. Some texts are kept back: the divergence there says how good the lens is, compared with that
of the logit lens, over several draws of which texts these are (`seeds`); the lens that is returned is the first draw's.
Cost: one recorded pass; per layer, seed and step the product of the rows with the unembedding, three times. Limits: few
rows fit themselves (d x d numbers a layer): read the divergence on texts that were kept back; a lens that says the
answer early does not say that anything reads it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import InputsError
from interp.patching.lenses.fitted import FittedLens, finish, last_residual, residuals
from interp.records import Method, Trial, register

if TYPE_CHECKING:
    from interp.model import Model

RIDGE = 1e-2
"""Of the mean variance of the residual."""


@torch.enable_grad()
def tuned_lens(
    model: Model,
    data: Any,
    *,
    sites: str | Sequence[str] = "L*.resid_post",
    steps: int = 60,
    rate: float = 3e-3,
    held_out: float = 0.25,
    seeds: int = 1,
    seed: int = 0,
) -> FittedLens:
    """A lens for the residuals that `sites` mean, fitted on the real positions of some texts."""
    if steps < 0 or rate <= 0 or not 0 < held_out < 1 or seeds < 1:
        raise InputsError(
            f"expected steps >= 0, rate > 0, held_out between 0 and 1, seeds >= 1; got {steps}, {rate},"
            f" {held_out}, {seeds}."
        )
    stack = last_tower(model.ready(), None)
    places = residuals(model, stack, sites)
    end = last_residual(places[0], stack)
    x = model.inputs(data)
    tape = model.run(x, record=[*places, end])
    tail = finish(model, stack, tape, end, x.kwargs)
    real = x.valid.to(tape[end].device)
    if len(real) < 2:
        raise InputsError(f"some texts are kept back to judge the lens by, so it takes two or more; got {len(real)}.")
    with torch.no_grad():
        target = finite(tape["logits"], "logits").float().log_softmax(-1).to(tape[end].device)
    draws = [_split(len(real), held_out, seed + n).to(real.device) for n in range(seeds)]
    last = tape[end].detach()
    fits = [
        [_fit(tail, tape[site].detach().to(last.device), last, target, real, kept, steps, rate) for kept in draws]
        for site in places
    ]
    kl, plain = (torch.tensor([[getattr(one, name) for one in row] for row in fits]) for name in ("kl", "plain"))
    return FittedLens(
        tuple(map(str, places)), torch.stack([row[0].matrix for row in fits]).cpu(),
        torch.stack([row[0].bias for row in fits]).cpu(), kl.double(), plain.double(),
        {**tape.meta, "method": "tuned lens", "steps": steps, "rate": rate, "held_out": held_out, "seed": seed},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Fit:
    """Of one place and draw."""

    matrix: Tensor
    bias: Tensor
    kl: float
    plain: float


def _split(count: int, share: float, seed: int) -> Tensor:
    """Which texts are kept back [text]."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, min(count - 1, round(share * count)))]] = True
    return kept


def _fit(
    tail: Tail, h: Tensor, last: Tensor, target: Tensor, real: Tensor, kept: Tensor, steps: int, rate: float
) -> _Fit:
    inside, outside = real & ~kept[:, None], real & kept[:, None]
    x, wanted = h[inside].float(), target[inside]
    eye = torch.eye(h.shape[-1], device=h.device)
    starts = [(eye, x.new_zeros(h.shape[-1])), _ridge(x, last[inside].float())]
    with torch.no_grad():
        found = min(starts, key=lambda one: float(_loss(tail, x, one[0], one[1], wanted)))
    matrix, bias = _descended(tail, x, wanted, found, steps, rate)
    with torch.no_grad():
        back, said = h[outside].float(), target[outside]
        judged = [float(_loss(tail, back, one[0], one[1], said)) for one in ((matrix, bias), starts[0])]
    return _Fit(matrix, bias, *judged)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map from x to y with the least squares, the matrix held near the identity."""
    mean, to = x.double().mean(0), y.double().mean(0)
    a, b = x.double() - mean, y.double() - to
    gram = a.mT @ a
    much = RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    matrix = eye + torch.linalg.solve(gram + much * eye, a.mT @ (b - a))
    return matrix.float(), (to - mean @ matrix).float()


def _loss(tail: Tail, x: Tensor, matrix: Tensor, bias: Tensor, wanted: Tensor) -> Tensor:
    """The mean over rows of KL( model || lens ) in nats."""
    made = tail.read(tail.normed((x @ matrix + bias).to(tail.left.dtype)[None], "final"), None)[0].to(wanted.device)
    return (wanted.exp() * (wanted - made.float().log_softmax(-1))).sum(-1).mean()


def _descended(
    tail: Tail, x: Tensor, wanted: Tensor, start: tuple[Tensor, Tensor], steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """The best of `steps` of Adam."""
    moving = [one.clone().requires_grad_() for one in start]
    best, least = start, float("inf")
    adam = torch.optim.Adam(moving, lr=rate)
    for step in range(steps + 1):
        with torch.enable_grad():
            loss = _loss(tail, x, moving[0], moving[1], wanted)
        if float(loss.detach()) < least:
            best, least = (moving[0].detach().clone(), moving[1].detach().clone()), float(loss.detach())
        if step == steps:
            break
        for one, slope in zip(moving, torch.autograd.grad(loss, moving), strict=True):
            one.grad = slope
        adam.step()
    return best


def _trial(t: Trial) -> FittedLens:
    return tuned_lens(t.model, t.base, sites=f"{t.tower}L0.resid_post", steps=2)


register(
    Method(
        "interp.patching.tuned_lens",
        number="nats between the model's next word and what a fitted lens says, on texts that were kept back",
        shown="curve",
        values=None,
        passes=lambda t: 5,
        unfit={"vit": "its answer is of the picture, not of each position"},
        example=_trial,
    )
)
