"""Learned head gates: the weights stay frozen, every head's z is multiplied by a gate, and open gates cost.

Voita et al. 2019 (arXiv 1905.09418) put gates of Louizos et al. 2018 (arXiv 1712.01312) on heads and minimise
`loss + penalty * cost(gates)`: a head whose gate closes was not needed for this loss. `kind` chooses the gates
(`interp/heads/gate_kinds.py`); only gates are trained, by Adam, so it takes seconds on a small model.
Cost: `seeds * steps` forward passes with a backward pass to the gates.
Limits: what closes depends on the penalty, which is a choice, and, where heads can replace each other, on the seed:
look at the spread over seeds. A penalty here is on the mean over gates, so papers' numbers, which are on sums, are
`penalty / number of heads`. Gates near 1 are not 1: `edits()` puts heads fully on or off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.gate_kinds import BANKS, Bank, Kind
from interp.hooks.edits.edits import Scale
from interp.hooks.errors import InputsError
from interp.hooks.head_names import heads_at
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.metrics.ids import EveryRow
from interp.metrics.own import own_divergence
from interp.metrics.places import At, Pooled
from interp.metrics.reading import on, reading
from interp.metrics.shipped import Reading, narrow
from interp.provenance import about
from interp.records import Method, register
from interp.results.gates import Gates
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

Loss = Callable[[Tensor, Any], Tensor]
Layers = Sequence[tuple[Site, tuple[int, ...]]]
"""z of each layer, and the heads that get gates."""
POINTS = 50
"""How many points of the training curve are kept."""
PENALTIES = {"hard-concrete": 1.0, "vib": 0.03, "binary": 0.3}
RATES = {"hard-concrete": 0.1, "vib": 0.1, "binary": 0.05}


@dataclass(frozen=True)
class GatedPart:
    """Rows that go through the model together, and their loss."""

    x: Inputs
    loss: Loss


@torch.enable_grad()
def gates(
    model: Model,
    data: Any,
    kind: Kind = "hard-concrete",
    *,
    penalty: float | None = None,
    steps: int = 200,
    loss: Loss | None = None,
    heads: str = "L*.H*",
    rate: float | None = None,
    batch: int = 32,
    seeds: int = 3,
    seed: int = 0,
) -> Gates:
    """Train a gate per head and say which stay open, for `seeds` runs from seed, seed + 1, ...

    `data` is a task, or inputs, or a list of inputs that are taken in turn. `loss(logits, inputs)` is what shall stay
    small: a number, or one a row; a metric of `interp.metrics` is taken the other way round, since more of it is
    better. Without one it is -log p of a task's right answers, and elsewhere the divergence from the model's own
    logits. `heads` is a site pattern; heads outside it stay open. `rate` is Adam's learning rate.
    """
    if kind not in BANKS:
        raise InputsError(f"kind is {', '.join(map(repr, BANKS))}; got {kind!r}.")
    if steps < 1 or seeds < 1 or batch < 1:
        raise InputsError(f"steps, seeds and batch are at least 1; got {steps}, {seeds} and {batch}.")
    layers, parts = layers_of(model, heads), parts_of(model, data, on(model, loss), batch)
    penalty, rate = PENALTIES[kind] if penalty is None else penalty, RATES[kind] if rate is None else rate
    plan = _Plan(model, layers, parts, kind, penalty, steps, rate)
    trained = [plan.trained(seed + n) for n in range(seeds)]
    sites = [name for site, found in layers for name in heads_at(site, found)]
    value, openness = (torch.stack([getattr(bank, name)().detach() for bank, _ in trained], 1)
                       for name in ("value", "openness"))  # fmt: skip
    towers = tuple(model.anatomy.tower(site.tower, text=heads).name for site, found in layers for _ in found)
    meta = {**about(model.module, parts[0].x), "method": "gates", "kind": kind, "penalty": penalty, "steps": steps,
            "batch": batch, "seeds": list(range(seed, seed + seeds)), "loss": _name(data, loss),
            "training": [curve for _, curve in trained]}  # fmt: skip
    return Gates(tuple(sites), towers, value, openness, meta)


def layers_of(model: Model, heads: str) -> Layers:
    """z of each layer that a pattern names, and which heads of it."""
    spelled = heads if heads.endswith(".z") else f"{heads}.z"
    anatomy = model.ready()
    return [(site.whole, anatomy.layer(site).heads_of(site)) for site in anatomy.sites(spelled)]


def parts_of(model: Model, data: Any, loss: Loss | None, batch: int) -> list[GatedPart]:
    """The data with their losses, as parts that are run together."""
    if isinstance(data, Task):
        task = data if data.model is model else data.on(model)
        rows = [task.take(range(n, min(n + batch, len(task)))) for n in range(0, len(task), batch)]
        return [GatedPart(part.clean, _task_loss(part) if loss is None else _turned(_of_rows(loss, at, batch)))
                for at, part in enumerate(rows)]  # fmt: skip
    given = data if isinstance(data, list) and data and not isinstance(data[0], (str, int)) else [data]
    inputs = [model.inputs(one) for one in given]
    if loss is None:
        return [GatedPart(x, own_divergence(model, x)) for x in inputs]
    if isinstance(loss, Reading) and loss.ROWS and len(inputs) > 1:
        raise InputsError(f"{type(loss).__name__} knows its rows: give a task, or one batch of inputs.")
    return [GatedPart(x, _turned(loss)) for x in inputs]


def _of_rows(loss: Loss, at: int, batch: int) -> Loss:
    """A metric that knows its rows, for one part of them."""
    if not isinstance(loss, (Reading, Pooled)) or not loss.ROWS:
        return loss
    first = getattr(loss, loss.ROWS[0])
    if isinstance(first, EveryRow) or (isinstance(first, Tensor) and first.ndim == 1):  # one for all rows
        return loss
    count = len(first)
    return loss.take(range(at * batch, min((at + 1) * batch, count)))


def _turned(loss: Loss) -> Loss:
    if isinstance(loss, Pooled):
        return At(loss.site, lambda value, x: -loss(value, x))
    return (lambda logits, x: -loss(logits, x)) if isinstance(loss, Reading) else loss


def _task_loss(part: Task) -> Loss:
    """-log of the summed probability of the right answers; of a whole answer, its tokens one by one; where texts are
    compared by the values at a place, their similarity."""
    if part.whole or part.score == "similarity":
        return _turned(part.metric)
    answers = part.answer_ids

    def loss(logits: Tensor, x: Inputs) -> Tensor:
        log_p = narrow(logits, x, Reading())[:, 0].log_softmax(-1)
        return -torch.stack([row[list(right)].logsumexp(0) for row, right in zip(log_p, answers, strict=True)])

    return loss


def _name(data: Any, loss: Loss | None) -> str:
    if loss is not None:
        return type(loss).__name__ if isinstance(loss, (Reading, Pooled)) else getattr(loss, "__name__", repr(loss))
    return "-log p(answer)" if isinstance(data, Task) else "divergence from the model's own logits"


@dataclass(frozen=True)
class _Plan:
    """What is the same in every run."""

    model: Model
    layers: Layers
    parts: Sequence[GatedPart]
    kind: str
    penalty: float
    steps: int
    rate: float

    def trained(self, seed: int) -> tuple[Bank, list[dict[str, Any]]]:
        """One bank of gates, trained, and points of its training curve."""
        random = torch.Generator().manual_seed(seed)
        bank = BANKS[self.kind](sum(len(heads) for _, heads in self.layers), random)
        adam = torch.optim.Adam(bank.parameters, lr=self.rate)
        curve = []
        for step, part in enumerate(taken(self.parts, self.steps, random)):
            value = self._slopes(bank, part, random)
            adam.step()
            if step % max(1, self.steps // POINTS) == 0 or step == self.steps - 1:
                share = float((bank.openness() > 0.5).float().mean())
                curve.append({"step": step, "loss": value, "cost": bank.cost().item(), "open": share})
        return bank, curve

    def _slopes(self, bank: Bank, part: GatedPart, random: torch.Generator) -> float:
        """The loss of one step, whose gradient the bank's parameters then have."""
        with reading(self.model, part.loss):
            tape = self.model.run(part.x, edits=gated(self.layers, bank.draw(random)), grad=True)
        value = checked(part.loss(tape["logits"], part.x))
        total = value + self.penalty * bank.cost().to(value.device)
        for parameter, slope in zip(bank.parameters, torch.autograd.grad(total, bank.parameters), strict=True):
            parameter.grad = slope
        return value.item()


def taken(parts: Sequence[GatedPart], steps: int, random: torch.Generator) -> Iterator[GatedPart]:
    """Every part once in a random order, and again, until there were enough."""
    left: list[int] = []
    for _ in range(steps):
        left = left or torch.randperm(len(parts), generator=random).tolist()
        yield parts[left.pop()]


def gated(layers: Layers, values: Tensor) -> list[Scale]:
    """Edits that multiply each head's z by its gate."""
    edits, start = [], 0
    for site, heads in layers:
        part = values[start : start + len(heads)]
        edits.append(Scale(str(Site(site.tower, site.layer, "z", heads)), part[:, None]))
        start += len(heads)
    return edits


def checked(value: Tensor) -> Tensor:
    """The mean loss, which has a gradient and is finite."""
    if not torch.is_tensor(value) or value.ndim > 1:
        shape = list(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise InputsError(f"a loss gives one number, or one a row; got {shape}.")
    if not value.requires_grad:
        raise InputsError("the loss has no gradient (an accuracy, or a detached tensor): give one that has.")
    mean = value.mean()
    if not bool(torch.isfinite(mean)):
        raise InputsError("the loss is not finite.")
    return mean


register(
    Method(
        "interp.heads.gates",
        number="how far a head's gate stays open, 0 to 1, by seed",
        shown="map",
        needs=("metric",),
        papers=("1905.09418", "1712.01312", "1802.10399", "2406.05276"),
        passes=lambda t: 2 * 3 * 2,
        values=None,
        example=lambda t: gates(
            t.model, t.base, heads=t.heads, loss=lambda logits, inputs: -t.metric(logits, inputs), steps=3, seeds=2
        ),
    )
)
