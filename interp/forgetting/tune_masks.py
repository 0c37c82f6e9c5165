"""Heads switched on or off for a task without forgetting the rest: mask tuning with gradient dropout.

Regularised mask tuning (Zheng et al. 2023, arXiv 2307.15049) learns a binary mask over the frozen weights of attention,
with an identity gradient through the threshold, and drops the part of the task's gradient that works against what the
model knows. There every weight has a mask; here every head has one, on its z: our adaptation. With m a real number a
head, b = 1[m > 0.005], m = 0.01 at the start, and each step

    g = d loss / d b       minus log p of the right answers, or the loss that is given
    h = d divergence / d b from the unmasked model's own logits
    P = (sign(g) (g + h) / (|g| + |h|) + 1) / 2,        g is kept where P > u, else multiplied by 1 - dropout; u uniform

so a head whose two gradients agree always moves, and one whose gradients cancel moves half the time at most. Adam and
its rate are ours (the paper's optimiser is not known to us). `general` is the data whose answers shall stay, the task's
own if not given; with a loss that rises with the right answer this forgets, and `general` is what is to be kept.
Cost: `seeds * steps` times two forward and two backward passes to the masks, and a pass over the general data.
Limits: as for learned gates, among heads that can replace each other chance decides: look at the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.gates import POINTS, GatedPart, Layers, Loss, checked, gated, layers_of, parts_of, taken
from interp.hooks.errors import InputsError
from interp.hooks.head_names import heads_at
from interp.metrics.reading import on, reading
from interp.provenance import about
from interp.records import Method, register
from interp.results.gates import Gates

if TYPE_CHECKING:
    from interp.model import Model

START, THRESHOLD = 0.01, 0.005
RATE = 1e-3
TINY = 1e-8


@torch.enable_grad()
def tune_masks(
    model: Model,
    data: Any,
    *,
    general: Any = None,
    loss: Loss | None = None,
    dropout: float = 1.0,
    heads: str = "L*.H*",
    steps: int = 100,
    rate: float = RATE,
    batch: int = 32,
    seeds: int = 3,
    seed: int = 0,
) -> Gates:
    """`data` is a task, or inputs with a `loss(logits, inputs)`; `dropout=0` leaves the regularisation out. The edits
    of the result take the closed heads out."""
    if not 0 <= dropout <= 1 or min(steps, batch, seeds) < 1 or not rate > 0:
        raise InputsError(
            "dropout= is 0 to 1, rate= above 0, steps=, batch= and seeds= at least 1; got"
            f" {dropout}, {rate}, {steps}, {batch} and {seeds}."
        )
    layers = layers_of(model, heads)
    mine = parts_of(model, data, on(model, loss), batch)
    kept = parts_of(model, _inputs(data if general is None else general), None, batch)
    plan = _Plan(model, layers, mine, kept, dropout, steps, rate)
    trained = [plan.trained(seed + n) for n in range(seeds)]
    value = torch.stack([mask for mask, _ in trained], 1)
    sites = tuple(name for site, found in layers for name in heads_at(site, found))
    towers = tuple(model.anatomy.tower(site.tower, text=heads).name for site, found in layers for _ in found)
    meta = {**about(model.module, mine[0].x), "method": "tune_masks", "kind": "tuned masks", "steps": steps,
            "dropout": dropout, "seeds": list(range(seed, seed + seeds)),
            "training": [curve for _, curve in trained]}  # fmt: skip
    return Gates(sites, towers, value, value.clone(), meta)


def _inputs(data: Any) -> Any:
    """What the model reads of a task: its own answers to that shall stay, whatever is right."""
    return getattr(data, "clean", data)


@dataclass(frozen=True)
class _Plan:
    """What is the same in every run."""

    model: Model
    layers: Layers
    mine: Sequence[GatedPart]
    kept: Sequence[GatedPart]
    dropout: float
    steps: int
    rate: float

    def trained(self, seed: int) -> tuple[Tensor, list[dict[str, Any]]]:
        """The mask [head] after training, and points of the curve."""
        random = torch.Generator().manual_seed(seed)
        mask = torch.full((sum(len(heads) for _, heads in self.layers),), START)
        adam = torch.optim.Adam([mask], lr=self.rate)
        curve = []
        for step, (task, rest) in enumerate(self._pairs(random)):
            (far, away), (loss, slope) = self._slope(rest, mask), self._slope(task, mask)
            mask.grad = dropped(slope, away, self.dropout, torch.rand(mask.shape, generator=random))
            adam.step()
            if step % max(1, self.steps // POINTS) == 0 or step == self.steps - 1:
                open_ = float((mask > THRESHOLD).float().mean())
                curve.append({"step": step, "loss": loss, "cost": far, "open": open_})
        return (mask > THRESHOLD).float(), curve

    def _pairs(self, random: torch.Generator) -> Iterator[tuple[GatedPart, GatedPart]]:
        yield from zip(taken(self.mine, self.steps, random), taken(self.kept, self.steps, random), strict=True)

    def _slope(self, part: GatedPart, mask: Tensor) -> tuple[float, Tensor]:
        """A loss, and its gradient at the binary mask, which is used in place of that at the real one."""
        binary = (mask > THRESHOLD).to(mask.dtype).requires_grad_()
        with reading(self.model, part.loss):
            tape = self.model.run(part.x, edits=gated(self.layers, binary), grad=True)
        value = checked(part.loss(tape["logits"], part.x))
        (slope,) = torch.autograd.grad(value, binary)
        return value.item(), slope


def dropped(task: Tensor, general: Tensor, dropout: float, u: Tensor) -> Tensor:
    """The task's gradient, less what works against the general one, for uniform draws `u`."""
    agree = (task.sign() * (task + general) / (task.abs() + general.abs() + TINY) + 1) / 2
    return torch.where(agree > u, task, (1 - dropout) * task)


register(
    Method(
        "interp.forgetting.tune_masks",
        number="whether a head stays on for a task, 0 or 1, by seed",
        shown="map",
        needs=("metric",),
        papers=("2307.15049",),
        signed=False,
        passes=lambda t: 1 + 2 * 3 * 2 * 3,
        values=None,
        made_of=("interp.heads.gates",),
        example=lambda t: tune_masks(
            t.model, t.base, heads=t.heads, loss=lambda logits, inputs: -t.metric(logits, inputs), steps=3, seeds=2
        ),
    )
)
