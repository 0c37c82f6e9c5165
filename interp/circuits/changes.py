"""What each sender writes more in the source than in the base, kept small: z of every head, writes of every MLP.

A head's write is `carry(z W_O + b)`, so `<change of a head's write, g> = <change of z, W_O^T carry^T g>`: the gradient
comes to the head, and no [batch, position, node, d] tensor is ever made. The carry (nothing, a multiplier, a layer
scale, or a norm after the attention) is differentiated at the run that the gradient belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.circuits.carries import Carries
from interp.circuits.graph import Graph
from interp.hooks.edits import Edit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs import Inputs
from interp.hooks.sites import Site
from interp.hooks.tail import last_tower
from interp.hooks.tape import tower_inputs
from interp.hooks.walk import Passed, Walk
from interp.judge import Metric, lined_up
from interp.judges import Judges, columns_wanted

if TYPE_CHECKING:
    from interp.model import Model

Filled = Literal["zero", "mean"]
FILLED = ("zero", "mean")
PARTS = ("z", "attn_out", "attn_write", "mlp_write")


@dataclass(eq=False)
class Written:
    """Something per sender: the embedding, z [row, position, head, d_head] and MLP writes by layer."""

    embed: Tensor
    z: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)


class Pair:
    """A base, what replaces it, and how runs are judged."""

    def __init__(self, model: Model, base: Any, source: Any, metric: Metric, tower: str | None = None) -> None:
        anatomy = model.ready()
        filled = isinstance(source, str) and source in FILLED
        self.model, self.metric = model, metric
        self.base: Inputs
        self.source: Inputs | Filled
        self.base, self.source = (model.inputs(base), source) if filled else lined_up(model, base, source)
        stack = last_tower(anatomy, tower)
        self.walk = Walk(model.module, anatomy, stack, family=model.family)
        self.graph = Graph.of(anatomy, stack)
        self.carries = Carries(self.walk)
        self.columns = columns_wanted({"": metric}, self.base, model.module)
        self.passes = 0
        """Forward passes and walks back so far."""

    @property
    def valid(self) -> Tensor:
        """[row, position] of the tower, which positions are real."""
        return tower_inputs(self.base, Site(self.walk.name, None, "embed")).valid

    def kwargs(self, x: Inputs | None = None) -> dict[str, Any]:
        """The arguments of a pass on the base, or on x."""
        return self.model.called_with((self.base if x is None else x).kwargs)

    def judge(self, passed: Passed) -> Tensor:
        """The metric of a pass, per row."""
        return self.judges(passed)(self.judges(passed).reads.of(passed.logits, passed.kept))[""]

    def judges(self, passed: Passed) -> Judges:
        """The metric, for logits like those of a pass."""
        classes = passed.logits.ndim == 2
        length = passed.length if passed.kept is not None or classes else passed.logits.shape[1]
        return Judges({"": self.metric}, self.base, classes=classes, length=length)

    def written(self) -> tuple[Written, Passed]:
        """What the source's senders write, and its pass."""
        assert not isinstance(self.source, str)
        found = Written(torch.empty(0))

        def take(layer: int, part: str, value: Tensor) -> None:
            (found.z if part == "z" else found.mlp)[layer] = value.clone()

        passed = self.walk.run(self.kwargs(self.source), columns=self.columns, take=take, wanted=("z", "mlp_write"))
        found.embed = passed.entered.pop(self.walk.layers[0])
        passed.entered.clear()
        self.passes += 1
        return found, passed

    def pass_base(self, *, edits: Iterable[Edit] = (), leaf: bool = False) -> Passed:
        """A pass on the base, with what the carries need of it."""
        take, wanted = self.carries.take, self.carries.wanted
        passed = self.walk.run(self.kwargs(), columns=self.columns, take=take, wanted=wanted, edits=edits, leaf=leaf)
        self.passes += 1
        return passed

    def changes(self) -> tuple[Written, Tensor, Tensor | None]:
        """Source minus base, and the metric of both."""
        if isinstance(self.source, str):
            more, score = Written(torch.empty(0)), None
        else:
            more, passed = self.written()
            score = self.judge(passed)
            del passed
        base = self._subtract(more)
        return more, self.judge(base), score

    def _subtract(self, more: Written) -> Passed:
        """Turn the source's values into changes, one layer at a time, in a pass on the base that checks the sum."""
        total: list[Tensor] = []

        def take(layer: int, part: str, value: Tensor) -> None:
            if part in ("attn_out", "attn_write"):
                self.carries.look(layer, part, value)
            if part in ("attn_write", "mlp_write"):
                total[:] = [value.double() if not total else total[0] + value]
            if part in ("z", "mlp_write"):
                into = more.z if part == "z" else more.mlp
                into[layer] = self._more(into.get(layer), value)

        passed = self.walk.run(self.kwargs(), columns=self.columns, take=take, wanted=PARTS)
        self.passes += 1
        embed = passed.entered[self.walk.layers[0]]
        self.check(total[0] + embed, passed.left)
        more.embed = self._more(more.embed if more.embed.numel() else None, embed)
        return passed

    def _more(self, new: Tensor | None, old: Tensor) -> Tensor:
        wide = old if old.dtype == torch.float64 else old.float()
        if new is None:
            assert isinstance(self.source, str)
            new = filled(self.source, wide, self.valid)
        return new.sub_(wide) if new.dtype == wide.dtype else new.to(wide.dtype).sub_(wide)

    def check(self, total: Tensor, left: Tensor) -> None:
        """Raise where writes do not add up to the last residual."""
        bound = 64 * len(self.walk.layers) * torch.finfo(left.dtype).eps * float(left.abs().max()) + 1e-9
        gap = float((total - left).abs().max())
        if not gap <= bound:
            raise ModelError(
                f"the writes of the tower {self.walk.tower.name!r} do not add up to its last residual (off by"
                f" {gap:.3g}): it normalises after adding, or more is added between its blocks, so it has no edges."
            )


def filled(how: Filled, value: Tensor, valid: Tensor) -> Tensor:
    """Zeros, or the mean over all real positions of all rows."""
    if how == "zero":
        return torch.zeros_like(value)
    real = (
        valid.to(value.device) if valid.shape == value.shape[:2] else torch.ones_like(value[..., 0], dtype=torch.bool)
    )
    return value[real.reshape(value.shape[:2])].mean(0).expand(value.shape).clone()


def refuse_filled(pair: Pair, why: str) -> None:
    """Raise for a source that is no run."""
    if isinstance(pair.source, str):
        raise InputsError(
            f"{why} needs two runs, and the source is {pair.source!r}: give a source run, or method='eap'."
        )
