"""What dampening found: by head how much more its weights matter to one data set than to another, and the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import Edit, Scale
from interp.hooks.errors import ModelError
from interp.provenance import model_hash
from interp.pruning.cut import copied
from interp.results.heads_table import HeadResult, HeadTable
from interp.results.intervals import apart, interval, weights

if TYPE_CHECKING:
    from interp.model import Model

DRAWS = 1000
MOST = 1e300
"""Replaces an infinite ratio while quantiles are taken."""


@dataclass(frozen=True, eq=False)
class Dampened(HeadResult):
    """`forget` and `retain` [head, batch of rows]: squared gradients summed over a head's weights."""

    STEM, TITLE = "dampened", "forget over other"

    sites: tuple[str, ...]
    towers: tuple[str, ...]
    forget: Tensor
    """[head, batch of rows]: squared gradients on the data to forget, summed over the head's weights."""
    retain: Tensor
    """[head, batch of rows]: the same on the data to keep."""
    touched: Tensor
    """[head]: the share of its weights that are made smaller."""
    factor: Tensor
    """[head]: what its weights are multiplied by, on average."""
    by: Mapping[str, Tensor] = field(default_factory=dict)
    """What each weight of a parameter is multiplied by, in the parameter's shape; parameters that stay are left out."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> Tensor:
        """[head]: forget over the other data; 0 where neither uses the head, infinite where only forget does."""
        return _ratio(self.forget.mean(1), self._other(self.forget.mean(1), self.retain.mean(1)))

    def _other(self, forget: Tensor, retain: Tensor) -> Tensor:
        share = self.meta["share"] if self.meta["against"] == "full" else 0.0
        return share * forget + (1 - share) * retain

    def edits(self) -> tuple[Edit, ...]:
        """Heads whose ratio is above alpha, their z made smaller as their weights would be."""
        ratio, alpha, lam = self.ratio, self.meta["alpha"], self.meta["lam"]
        chosen = [n for n in range(len(self.sites)) if float(ratio[n]) > alpha]
        return tuple(Scale(f"{self.sites[n]}.z", min(lam / float(ratio[n]), 1.0)) for n in chosen)

    def on(self, model: Model) -> Model:
        """A copy of the model with its weights changed; the model has to be the one that was asked."""
        found = model_hash(model.module)
        if found != self.meta["model_hash"]:
            raise ModelError(
                f"this change was found on another model (hash {self.meta['model_hash']}, here {found}): run dampen on"
                " this one."
            )
        own = copied(model)
        with torch.no_grad():
            for name, factor in self.by.items():
                parameter = own.module.get_parameter(name)
                parameter.copy_(parameter.double() * factor.to(parameter.device))
        return own

    def tables(self) -> Sequence[HeadTable]:
        """The ratio with its interval over both sets, the share of weights changed and their mean factor."""
        drawn = [weights(apart(one.shape[1]), draws=DRAWS, seed=n) @ one.T
                 for n, one in enumerate((self.forget, self.retain))]  # fmt: skip
        each = _ratio(drawn[0], self._other(*drawn)).nan_to_num(posinf=MOST)
        ends = interval(each, n=min(self.forget.shape[1], self.retain.shape[1]))
        low, high = (torch.where(end > MOST / 2, torch.inf, end) for end in ends)
        more = {"touched": self.touched, "factor": self.factor}
        table = HeadTable(
            self.sites, self.forget, "dampen", self.towers, estimate=self.ratio, ends=(low, high), more=more
        )
        return (table,)

    def tensors(self) -> dict[str, Tensor]:
        """With the change by parameter."""
        return super().tensors() | {f"by/{name}": value for name, value in self.by.items()}

    def facts(self) -> dict[str, Any]:
        """With the names of the parameters that change."""
        return {**super().facts(), "parameters": list(self.by)}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Dampened:
        """The change by parameter again."""
        by = {name: tensors[f"by/{name}"] for name in facts["parameters"]}
        plain = {name: value for name, value in tensors.items() if "/" not in name}
        return super().restored({**facts, "by": by}, plain)

    def __repr__(self) -> str:
        changed = sum(int((factor < 1).sum()) for factor in self.by.values())
        best = int(torch.nan_to_num(self.ratio, posinf=torch.finfo(torch.float64).max).argmax())
        hint = ""
        if not changed:
            hint = f": no weight is above alpha = {self.meta['alpha']:g}"
            hint += f" (a weight only forget uses has {1 / self.meta['share']:.3g})" * (self.meta["against"] == "full")
        return (
            f"Dampened: {changed:,} weights{hint}; first {self.sites[best]}, ratio {float(self.ratio[best]):.3g},"
            f" {float(self.touched[best]):.0%} of its weights"
        )


def _ratio(forget: Tensor, other: Tensor) -> Tensor:
    return torch.where(forget > 0, forget / other, 0.0)
