"""How operators differ from the softmax of trained heads, and from each other, on the same queries, keys and values?

Every head's own q, k and v are taken from one run of the model as it is, and each operator attends from them: nothing
downstream is changed, so that heads are compared one by one. What is read is in `readouts`: weight that moved, how far
a row's weights are monotone in q.k and how spiky they are, after Hedgehog (arXiv 2402.04347), ranks of the map, of
the output and of the state, after RALA (arXiv 2411.07635), and whether rows can attend alike, after InLine (arXiv
2412.06590). The first operator of the table is always the head's own softmax.
Cost: one forward pass, and each operator's attention of the heads named. Limits: patterns and singular values are of
at most 512 rows, spread evenly; operators that refuse a tower refuse here; a readout that an operator does not have
(a pattern of channels, a state of softmax) is missing in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import heads_at, layer_name
from interp.kernels.masks.symbols import Window
from interp.operators.common.operator import Operator
from interp.operators.linear.local_linear import LocalLinear
from interp.operators.other.static import StaticQK
from interp.operators.readouts import NAMES, label, read
from interp.operators.visiting import one_call_each, places_of, real_rows
from interp.operators.windows.masked import Masked
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Compared(HeadResult):
    """Readouts of operators on heads; the first operator is the heads' own softmax."""

    STEM, TITLE = "operators", "weight moved"

    sites: tuple[str, ...]
    operators: tuple[str, ...]
    """The operators, in the order of `values`; the first is "softmax"."""
    values: Tensor
    """[operator, head, example]: the distance of z from the head's own, relative to its length ("error")."""
    readouts: Tensor
    """[operator, readout, head, example]: the numbers that `names` lists; NaN where an operator has none."""
    names: tuple[str, ...] = NAMES
    """The names of the numbers, in the order of `readouts`."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def tables(self) -> tuple[HeadTable, ...]:
        """The error in z by operator and head, and the mean over examples of every other readout."""
        return tuple(
            HeadTable(self.sites, self.values[n], name, more=self._means(n)) for n, name in enumerate(self.operators)
        )

    def _means(self, n: int) -> dict[str, Tensor]:
        return dict(zip(self.names, self.readouts[n].mean(-1), strict=True))

    def __repr__(self) -> str:
        means = {name: float(self.values[n].mean()) for n, name in enumerate(self.operators)}
        said = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        return f"Compared: {len(self.sites)} heads; mean error of z: {said}"


def compare(model: Model, data: Any, operators: Sequence[Operator], sites: str = "L*.H*") -> Compared:
    """Each operator's readouts at every head of `sites`; where the operators themselves say they go is not heeded."""
    if not operators or not all(isinstance(one, Operator) for one in operators):
        raise InputsError(f"operators= is a list of operators, such as [Linear('L*.H*')], got {operators!r}.")
    x = model.inputs(data)
    places = places_of(model, sites)
    parts = one_call_each(model, x, places)
    every = [StaticQK("L*", q="own"), *operators]
    shown = [(layer_name(site), parts[str(site)], real_rows(x, site)) for site in places]
    each = [torch.cat([_read(replace(one, site=site), *rest) for site, *rest in shown], 1) for one in every]
    found = torch.stack(each)
    return Compared(
        tuple(name for site in places for name in heads_at(site, model.anatomy.layer(site).heads_of(site))),
        ("softmax", *map(label, operators)), found[:, NAMES.index("error")], found,
        meta={**about(model.module, x), "method": "compare", "operators": [one.written for one in operators]},
    )  # fmt: skip


def _read(operator: Operator, part: Any, real: Tensor) -> Tensor:
    """[readout, head, example]"""
    with torch.no_grad():
        found = read(operator, part, real)
    return torch.stack([found[name].T for name in NAMES])


def _example(t: Trial) -> Compared:
    return compare(t.model, t.base, [Masked("L*", Window(3)), LocalLinear("L*")], t.heads)


register(
    Method(
        "interp.operators.compare",
        number="distance of an operator's z from the head's own, over the length of the head's own; 0 is no difference",
        shown="bars",
        signed=False,
        passes=lambda t: 4,
        example=_example,
    )
)
