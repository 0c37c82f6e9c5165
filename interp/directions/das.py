"""Distributed alignment search: the few dimensions of a site that carry a variable, found by training.

Geiger et al. 2023 (arXiv 2303.02536). An orthonormal basis R [d, dim] is trained so that exchanging the part inside of
it, `x' = x + R R^T (source - x)`, turns the base's answer into the one the source's variable asks for; the model stays
as it is. Interchange accuracy is the share of pairs answered so, on rows kept out of training. For comparison there are
random bases of the same size and the exchange of everything. Cost: two recorded passes, then one forward and backward
pass over all rows a step and seed, and one pass per control. Limits: a trained basis may find a way that the model
itself does not take (Makelov et al. 2023, arXiv 2311.17030): more seeds, held-out rows and the controls are the least
one should look at; all rows go through the model together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from interp.directions.vectors import random_bases, single
from interp.hooks.edits.edits import Project, Set, ValueEdit
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.session import Session
from interp.hooks.stand.output import logits_of
from interp.metrics.judge import Judge, Metric, answer_ids, lined_up, reads_of
from interp.metrics.reading import hands_over
from interp.metrics.shipped import LogProb
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Das(Told):
    """What was found by each seed, and what random bases and the whole site give."""

    site: str
    """The site at which base and source are exchanged."""
    bases: Tensor
    """Orthonormal columns [seed, d, dim], for `Project` and `directions.exchange`."""
    train: Tensor
    """Interchange accuracy on the rows trained on [seed]."""
    heldout: Tensor
    """Interchange accuracy on the rows kept out of training [seed]."""
    random: Tensor
    """On the held-out rows, with random bases of the same size [draw]."""
    whole: float
    """On the held-out rows, with everything at the site exchanged."""
    unchanged: float
    """On the held-out rows, with nothing exchanged: how often base and source ask for the same."""
    losses: Tensor
    """[seed, step]: minus the mean of what is trained to be large, on the rows trained on."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row per seed."""
        import pandas

        return pandas.DataFrame(
            {"seed": self.meta["seeds"], "train": self.train, "heldout": self.heldout,
             "random": float(self.random.mean()), "whole": self.whole, "unchanged": self.unchanged}
        )  # fmt: skip

    def __repr__(self) -> str:
        found = ", ".join(f"{value:.2f}" for value in self.heldout.tolist())
        return (
            f"Das of {self.bases.shape[2]} dimensions at {self.site}: held-out interchange accuracy {found} (random"
            f" {float(self.random.mean()):.2f}, everything {self.whole:.2f}, nothing {self.unchanged:.2f})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Exchanged(ValueEdit):
    """`x + (value - x) R R^T`, differentiable in R."""

    value: Any = None
    columns: Any = None

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        moved = (self.value - x).to(torch.promote_types(x.dtype, self.columns.dtype))
        columns = self.columns.to(moved.dtype)
        return x + (moved @ columns @ columns.T).to(x.dtype)


@hands_over
@torch.enable_grad()
def das(
    model: Model,
    *,
    base: Any,
    source: Any,
    site: str,
    dim: int,
    labels: Any = None,
    metric: Metric | None = None,
    positions: Positions = "last",
    steps: int = 200,
    rate: float = 1e-2,
    seeds: Sequence[int] = (0, 1, 2),
    heldout: float = 0.25,
    controls: int = 20,
) -> Das:
    """Train a basis of `dim` dimensions at one site (a residual, or one head's q, k, v or z).

    `labels` are the answers wanted after the exchange, one a row, ids or words: right is what has the largest logit.
    `metric` instead is trained to be large, and right where it is above 0.
    """
    if (labels is None) == (metric is None):
        raise InputsError("das needs to know what the exchange should give: one of labels= and metric=.")
    x, y = lined_up(model, base, source)
    one = single(model, site)
    value = model.run(y, record=one)[one]
    if not 1 <= dim <= value.shape[-1]:
        raise SiteError(f"{site!r} is {value.shape[-1]} wide, so dim is 1 to that, got {dim}.")
    wanted = _Wanted(model, x, labels, metric)
    test = _split(x.batch, heldout, seeds)
    edit = {"value": value, "positions": positions}
    trained = [_train(wanted, str(one), edit, ~test, (dim, steps, rate, seed)) for seed in seeds]
    right = [wanted.right([Project(str(one), basis, to=value, positions=positions)]) for basis, _ in trained]
    drawn = random_bases(value.shape[-1], dim, controls, seed=min(seeds))
    chance = [_share(wanted.right([Project(str(one), r, to=value, positions=positions)]), test) for r in drawn]
    return Das(
        str(one), torch.stack([basis for basis, _ in trained]).cpu(),
        torch.tensor([_share(row, ~test) for row in right]), torch.tensor([_share(row, test) for row in right]),
        torch.tensor(chance), _share(wanted.right([Set(str(one), value, positions=positions)]), test),
        _share(wanted.right([]), test), torch.stack([losses for _, losses in trained]),
        {**wanted.meta, "method": "distributed alignment search", "seeds": list(seeds), "steps": steps, "rate": rate},
    )  # fmt: skip


def _split(rows: int, heldout: float, seeds: Sequence[int]) -> Tensor:
    """Which rows are kept out, the same for every seed."""
    count = round(rows * heldout)
    if not seeds or not 1 <= count < rows:
        raise InputsError(
            "das needs a seed, and rows both to train on and to keep out: got"
            f" {len(seeds)} seeds and {count} of {rows} rows kept out."
        )
    test = torch.zeros(rows, dtype=torch.bool)
    test[torch.randperm(rows, generator=torch.Generator().manual_seed(min(seeds)))[:count]] = True
    return test


def _share(right: Tensor, rows: Tensor) -> float:
    return float(right[rows].double().mean())


class _Wanted:
    """What the exchange should give: the loss of each row, and whether it is right."""

    def __init__(self, model: Model, x: Inputs, labels: Any, metric: Metric | None) -> None:
        self.model, self.x = model, x
        self.labels = None if labels is None else answer_ids(model, labels)
        if self.labels is not None and (len(self.labels) != x.batch or any(len(row) != 1 for row in self.labels)):
            raise InputsError(f"labels needs one token for each of the {x.batch} rows, got {len(self.labels)} labels.")
        self.metric: Metric = metric if metric is not None else LogProb(self.labels or ())
        tape = model.run(x)
        self.meta = tape.meta
        self.reads = reads_of(self.metric, x, tape["logits"])
        self.judge = Judge(self.metric, x, classes=tape["logits"].ndim == 2)

    def read(self, edits: Sequence[ValueEdit]) -> Tensor:
        """The logits that are read, under edits, with a gradient where one is enabled."""
        model = self.model
        with Session(model.module, model.anatomy, edits=edits, inputs=self.x, family=model.family):
            logits = logits_of(model.module(**model.called_with(self.x.kwargs)))
        assert logits is not None
        return self.reads.of(logits)

    def right(self, edits: Sequence[ValueEdit]) -> Tensor:
        """[row], whether the answer is the one wanted."""
        with torch.no_grad():
            read = self.read(edits)
            if self.labels is None:
                return (self.judge(read) > 0).cpu()
        return read[:, 0].argmax(-1).cpu() == torch.tensor([row[0] for row in self.labels])


def _train(
    wanted: _Wanted, site: str, edit: Mapping[str, Any], rows: Tensor, how: tuple[int, int, float, int]
) -> tuple[Tensor, Tensor]:
    """One seed's basis [d, dim], and its loss by step."""
    dim, steps, rate, seed = how
    device, losses = edit["value"].device, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        turn = nn.Linear(edit["value"].shape[-1], dim, bias=False).to(device)
        orthogonal(turn)
    optimizer = torch.optim.Adam(turn.parameters(), lr=rate)
    for _ in range(steps):
        with torch.enable_grad():
            loss = -wanted.judge(wanted.read([Exchanged(site, columns=turn.weight.T, **edit)]))[rows].mean()
            gradients = torch.autograd.grad(loss, list(turn.parameters()))
        for parameter, gradient in zip(turn.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        losses.append(float(loss.detach()))
    return turn.weight.detach().T.contiguous(), torch.tensor(losses)


register(
    Method(
        "interp.directions.das",
        number="interchange accuracy: the share of pairs answered as the source's variable asks, on rows held out",
        shown="bars",
        needs=("metric", "source"),
        passes=lambda t: 2 + 2 * 3 + 2 + 3,
        values=None,
        example=lambda t: das(
            t.model, base=t.base, source=t.source, metric=t.metric, site=f"{t.tower}L1.H1.z", dim=2, steps=3,
            positions=t.reads, seeds=(0,), controls=2,
        ),
    )
)  # fmt: skip
