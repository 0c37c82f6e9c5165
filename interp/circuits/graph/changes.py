"""What each sender writes more in the source than in the base, kept small: z of every head, writes of every MLP.

A head's write is `carry(z W_O + b)`, and of that only z is kept: no [batch, position, node, d] tensor of all nodes is
ever made, and of one layer's heads only while they are compared with what another layer reads. The carry (nothing, a
multiplier, a layer scale, or a norm after the attention) is differentiated at the run that the gradient belongs to.
Rows do not mix, so a pass takes as many of them at a time as keep its memory small compared with the changes that have
to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.circuits.graph.carries import Carries
from interp.circuits.graph.nodes import Graph
from interp.hooks.drive.blocks import Blocks
from interp.hooks.drive.recording import Recording
from interp.hooks.drive.tail import last_tower
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.positions import real
from interp.hooks.run.session import edits_on
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.metrics.judge import Metric, lined_up
from interp.metrics.judges import Judges, columns_wanted

if TYPE_CHECKING:
    from interp.model import Model

Filled = Literal["zero", "mean"]
FILLED = ("zero", "mean")
PARTS = ("z", "attn_out", "attn_write", "mlp_write")
BY_ROW = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds"}
"""Arguments that have one entry per row; a batch with others is not taken apart."""
GRAPH = 2**23
"""Bytes that what is walked may always have."""
TAPES = 1.8
"""What is walked may have so many tapes, z and resid_pre of every layer and row; the changes take another one."""
IN_A_BLOCK = 34
"""A block with its graph, in residuals: an MLP of four times the width with its gradients, q, k, v, z and the norms."""


@dataclass(eq=False)
class Written:
    """Something per sender: the embedding, z [row, position, head, d_head] and MLP writes by layer."""

    embed: Tensor
    z: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)


class GraphPair:
    """A base, what replaces it, and how runs are judged."""

    def __init__(self, model: Model, base: Any, source: Any, metric: Metric, tower: str | None = None) -> None:
        anatomy = model.ready()
        filled = isinstance(source, str) and source in FILLED
        self.model, self.metric = model, metric
        self.base: Inputs
        self.source: Inputs | Filled
        self.base, self.source = (model.inputs(base), source) if filled else lined_up(model, base, source)
        stack = last_tower(anatomy, tower)
        self.blocks = Blocks(model.module, anatomy, stack, family=model.family, alone=True)
        self.graph = Graph.of(anatomy, stack)
        self.carries = Carries(self.blocks)
        self.columns = columns_wanted({"": metric}, self.base, model.module)
        self.passes = 0
        """Forward passes and walks back so far."""

    @property
    def valid(self) -> Tensor:
        """[row, position] of the tower, which positions are real."""
        return tower_inputs(self.base, Site(self.blocks.name, None, "embed")).valid

    def kwargs(self, x: Inputs | None = None) -> dict[str, Any]:
        """The arguments of a pass on the base, or on x."""
        return self.model.called_with((self.base if x is None else x).kwargs)

    def parts(self) -> list[slice]:
        """The rows that a pass takes at a time."""
        rows, shape = self.base.batch, self.valid.shape
        residual = shape[1] * self.blocks.tower.width * next(self.model.module.parameters()).element_size()
        room = max(GRAPH, int(TAPES * 2 * len(self.blocks.layers) * rows * residual))
        step = max(1, room // (self._standing() * residual)) if self._apart() else rows
        step = -(-rows // -(-rows // step))  # as even as can be
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _standing(self) -> int:
        """What one row needs in memory, in residuals: one a layer, a block, a slope for each of its receivers (and what
        a norm makes of them on the way back), a write for each head of a layer, once turned."""
        graph = self.graph
        slopes = max(len(graph.receivers_of(layer)) for layer in self.blocks.layers)
        heads = max(layer.heads for layer in graph.layers)
        return len(graph.layers) + IN_A_BLOCK + slopes * (6 if self.carries.wanted else 1) + 2 * heads

    def _apart(self) -> bool:
        """Whether rows can be run apart: nothing is shared between them, as a mean or a picture would be."""
        if not all(edit.tokenwise for edit in edits_on(self.model.module)):
            return False
        runs = [run for run in (self.base, self.source) if isinstance(run, Inputs)]
        tensors = [(name, value) for run in runs for name, value in self.kwargs(run).items() if torch.is_tensor(value)]
        alone = {"pixel_values"} if all(name not in BY_ROW for name, _ in tensors) else BY_ROW
        return self.source != "mean" and all(n in alone and len(x) == self.base.batch for n, x in tensors)

    def judge(self, passes: Sequence[Recording]) -> Tensor:
        """The metric of passes over all rows, per row."""
        passed = passes[0]
        if len(passes) > 1:
            logits = torch.cat([one.logits for one in passes])
            passed = replace(passed, rows=len(logits), logits=logits)
        judges = self.judges(passed)
        return judges(judges.reads.of(passed.logits, passed.kept))[""]

    def judges(self, passed: Recording) -> Judges:
        """The metric, for logits like those of a pass."""
        classes = passed.logits.ndim == 2
        length = passed.length if passed.kept is not None or classes else passed.logits.shape[1]
        return Judges({"": self.metric}, self.base, classes=classes, length=length)

    def written(self) -> tuple[Written, Tensor]:
        """What the source's senders write, and its metric."""
        assert not isinstance(self.source, str)
        found, first = Written(torch.empty(0)), self.blocks.layers[0]
        passes: list[Recording] = []
        for rows in self.parts():

            def take(layer: int, part: str, value: Tensor, rows: slice = rows) -> None:
                self._put(found.z if part == "z" else found.mlp, layer, rows, value)

            passed = self._run(rows, self.source, take=take, wanted=("z", "mlp_write"))
            whole = {first: found.embed} if passes else {}
            self._put(whole, first, rows, passed.entered[first])
            found.embed = whole[first]
            passed.entered.clear()
            passes.append(passed)
        self.passes += 1
        return found, self.judge(passes)

    def _put(self, into: dict[int, Tensor], layer: int, rows: slice, value: Tensor) -> None:
        """Write the values of some rows."""
        if rows == slice(0, self.base.batch):
            into[layer] = value.clone()
            return
        if layer not in into:
            into[layer] = value.new_empty(self.base.batch, *value.shape[1:])
        into[layer][rows] = value

    def _run(self, rows: slice, x: Inputs, **how: Any) -> Recording:
        kwargs = self.kwargs(x)
        if rows != slice(0, self.base.batch):
            kwargs = {name: value[rows] if torch.is_tensor(value) else value for name, value in kwargs.items()}
        return self.blocks.record(kwargs, columns=self.columns, **how)

    def pass_base(self, rows: slice, *, edits: Iterable[Edit] = (), leaf: bool = False) -> Recording:
        """A pass on some rows of the base, with what the carries need of it."""
        carries = self.carries
        return self._run(rows, self.base, take=carries.take, wanted=carries.wanted, edits=edits, leaf=leaf)

    def now(self, layer: int, part: str) -> Tensor:
        """What the base has at one layer's z or mlp_write, or as its embedding; of the logits only what is read."""
        found: dict[int, Tensor] = {}
        for rows in self.parts():

            def take(at: int, _: str, value: Tensor, rows: slice = rows) -> None:
                if at == layer:
                    self._put(found, layer, rows, value)

            passed = self._run(rows, self.base, take=take, wanted=() if part == "embed" else (part,))
            if part == "embed":
                self._put(found, layer, rows, passed.entered[layer])
        self.passes += 1
        return found[layer]

    def changes(self) -> tuple[Written, Tensor, Tensor | None]:
        """Source minus base, and the metric of both."""
        more, score = (Written(torch.empty(0)), None) if isinstance(self.source, str) else self.written()
        passes = [self._subtract(more, rows) for rows in self.parts()]
        self.passes += 1
        return more, self.judge(passes), score

    def _subtract(self, more: Written, rows: slice) -> Recording:
        """Turn the source's values into changes, one layer at a time, in a pass on the base that checks the sum."""
        total: list[Tensor] = []

        def take(layer: int, part: str, value: Tensor) -> None:
            if part in ("attn_out", "attn_write"):
                self.carries.look(layer, part, value)
            if part in ("attn_write", "mlp_write"):
                total[:] = [value.double() if not total else total[0] + value.to(total[0].device)]
            if part in ("z", "mlp_write"):
                self._less(more.z if part == "z" else more.mlp, layer, rows, value)

        passed = self._run(rows, self.base, take=take, wanted=PARTS)
        first = self.blocks.layers[0]
        embed = passed.entered[first]
        self.check(total[0] + embed.to(total[0].device), passed.left)
        whole = {first: more.embed} if more.embed.numel() else {}
        self._less(whole, first, rows, embed)
        more.embed = whole[first]
        passed.entered.clear()
        return passed

    def _less(self, into: dict[int, Tensor], layer: int, rows: slice, old: Tensor) -> None:
        """Take the base's values of some rows away from the source's, in float32 or better."""
        old = old if old.dtype == torch.float64 else old.float()
        if isinstance(self.source, str):
            self._put(into, layer, rows, filled(self.source, old, self.valid[rows]))
        into[layer] = into[layer].to(old.dtype)
        into[layer][rows] -= old

    def check(self, total: Tensor, left: Tensor) -> None:
        """Raise where writes do not add up to the last residual."""
        bound = 64 * len(self.blocks.layers) * torch.finfo(left.dtype).eps * float(left.abs().max()) + 1e-9
        gap = float((total.to(left.device) - left).abs().max())
        if not gap <= bound:
            raise ModelError(
                f"the writes of the tower {self.blocks.tower.name!r} do not add up to its last residual (off by"
                f" {gap:.3g}): it normalises after adding, or something else is added between its blocks. Its edges"
                " are not defined."
            )


def filled(how: Filled, value: Tensor, valid: Tensor) -> Tensor:
    """Zeros, or the mean over all real positions of all rows."""
    if how == "zero":
        return torch.zeros_like(value)
    here = real(valid, value.shape[:2], "what is written to the residual").to(value.device)
    return value[here].mean(0).expand(value.shape).clone()


def refuse_filled(pair: GraphPair, why: str) -> None:
    """Raise for a source that is no run."""
    if isinstance(pair.source, str):
        raise InputsError(
            f"{why} needs two runs, and the source is {pair.source!r}: give a source run, or method='eap'."
        )
