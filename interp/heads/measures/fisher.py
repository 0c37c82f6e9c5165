"""What a head knows of one data set and not of another: the diagonal of the Fisher information of its gate.

With xi_h a factor on z_h, `F_h(D) = mean over x in D of (d log p(y | x) / d xi_h)^2`, the empirical Fisher information
(y is the right answer, not a draw from the model). Dampening by the ratio of two such diagonals, of what is to be
forgotten and what is to be kept, is Foster et al. 2024 (arXiv 2308.07707), there for parameters; for gates of heads it
is our definition:

    fisher             F_h(data)
    fisher-ratio       F_h(data) / F_h(retain); where retain does not touch the head, against the smallest positive
                       F(retain) of any head
    fisher-difference  F_h(data) - F_h(retain)

Where the answers are known p is their probability; else the metric is used as log p, and should be a log-probability.
Cost: one forward and one backward pass a data set. Limits: a diagonal, so heads that only matter together are not seen.
"""

from __future__ import annotations

from torch import Tensor

from interp.heads.measures import gradient
from interp.heads.measures.asked import Asked, Run
from interp.heads.measures.measured import Measured, Reduce
from interp.hooks.errors import InputsError
from interp.records import Variant, register

REDUCE: dict[str, Reduce] = {"fisher": "mean", "fisher-ratio": "ratio", "fisher-difference": "difference"}


def measured(run: Run, names: list[str]) -> list[Measured]:
    """Those asked for, from one graph a data set."""
    asked, retain = run.asked, run.retain
    against = [name for name in names if name != "fisher"]
    if against and retain is None:
        raise InputsError(f"by={against[0]!r} compares two data sets: give retain= (a task, or inputs) as the second.")
    if retain is not None and (asked.labels is None) != (retain.labels is None):
        raise InputsError("data and retain= need one likelihood: the right answers of both (two tasks), or of neither.")
    forget, keep = _squared(asked), None if retain is None else _squared(retain)
    passes = gradient.PASSES * (1 if retain is None else 2)
    return [
        Measured(
            name, forget, reduce=REDUCE[name], other=None if name == "fisher" else keep, passes=passes,
            other_groups=() if retain is None else retain.groups,
        )
        for name in names
    ]  # fmt: skip


def _squared(asked: Asked) -> Tensor:
    each = gradient.gates(asked, asked.likelihood())
    return asked.by_head({site: value.sum(1) for site, value in each.items()}).square()


_NUMBERS = {
    "fisher": "mean square of what the answer's log-probability feels of a gate on the head",
    "fisher-ratio": "the same over that of another data set",
    "fisher-difference": "the same less that of another data set",
}
for _order, _name in enumerate(REDUCE):
    register(
        Variant(
            "interp.importance", _name, argument="by", number=_NUMBERS[_name], run=measured, order=70 + _order,
            passes=lambda t: 4, how={"shares": "fisher"}, example={"labels": None}, signed=_name == "fisher-difference",
        )
    )  # fmt: skip
