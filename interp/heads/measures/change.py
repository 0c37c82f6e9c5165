"""What removing a head does to what is predicted: metrics that compare a run with the whole model's own.

Pruning-based importance of heads in ViTs is the idea of Li et al. 2023 (arXiv 2303.13731), whose formulas could not be
had; these definitions are ours. With p the whole model's distribution and q that without the head, per example:

    prediction   1 unless argmax p is also that of q, alone   (the share of examples whose prediction changes)
    probability  p(right answer) - q(right answer)
    loss         ln p(right answer) - ln q(right answer)      (what the cross-entropy gains)
    kl           sum p ln(p / q)
    js           (KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2   (at most ln 2)

Cost: none beyond the zero ablation that they read. Limits: at the last position (of a sequence), over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.heads.measures.asked import Asked
from interp.heads.measures.measured import Order
from interp.hooks.errors import InputsError
from interp.metrics.shipped import KL, LogProb, Probability, Reading, narrow

METHODS = ("prediction", "probability", "loss", "kl", "js")
ORDER: dict[str, Order] = {"prediction": "high", "probability": "abs", "loss": "abs", "kl": "high", "js": "high"}
LOST = ("probability", "loss")
"""Measured by what the metric loses; the others are what the metric gains."""


@dataclass(frozen=True, eq=False)
class Changed(Reading):
    """1 unless the largest of the reference logits [row, column] is still larger than all others."""

    reference: Float[Tensor, "batch column"] = field(repr=False)
    ROWS: ClassVar[tuple[str, ...]] = ("reference",)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        self._fits(read, self.reference)
        said = self.reference.to(read.device).argmax(-1, keepdim=True)
        others = read[:, 0].scatter(1, said, -torch.inf).amax(1)
        return (read[:, 0].gather(1, said)[:, 0] <= others).to(read.dtype)


@dataclass(frozen=True, eq=False)
class JensenShannon(Reading):
    """The Jensen-Shannon divergence from the reference logits [row, column], in nats."""

    reference: Float[Tensor, "batch column"] = field(repr=False)
    ROWS: ClassVar[tuple[str, ...]] = ("reference",)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        self._fits(read, self.reference)
        p, q = (one.double().log_softmax(-1) for one in (self.reference.to(read.device), read[:, 0]))
        m = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype))
        both = (p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)
        return (both / 2).to(read.dtype)


def metrics(asked: Asked, methods: list[str]) -> dict[str, Reading]:
    """The metric of each of these measures, as a zero ablation reads it."""
    logits = asked.model.run(asked.x)["logits"]
    blank = JensenShannon(logits.new_zeros(1, 1))
    reference = narrow(logits, asked.x, blank)[:, 0].detach()
    made: dict[str, Reading] = {}
    for name in methods:
        if name in ("prediction", "js"):
            made[name] = Changed(reference) if name == "prediction" else JensenShannon(reference)
        elif name == "kl":
            made[name] = KL(reference[:, None], negate=False)
        else:
            made[name] = _of_answers(asked, name)
    return made


def _of_answers(asked: Asked, name: str) -> Reading:
    answers = asked.answers(name)
    if name == "loss":
        return LogProb(answers if asked.forced else tuple(row[:1] for row in answers), forced=asked.forced)
    if asked.forced:
        raise InputsError("by='probability' reads answers of one token; these are scored token by token: use 'loss'.")
    return Probability(answers)
