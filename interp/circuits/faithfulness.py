"""Does a circuit do what the model does: faithfulness, completeness, minimality, and what chance would have given.

`f(C) = (m(C) - m(nothing)) / (m(model) - m(nothing))`, means over prompts before the ratio; everything outside C takes
another run's values (resample), their mean over real positions, or zero, and C computes on the clean prompts, edge by
edge (`interp/circuits/graph/running.py`) or by whole nodes (Wang et al. 2023, arXiv 2211.00593; Mueller et al. 2025,
MIB, 2504.13151). 0 is nothing and 1 the whole model; f is not clipped and may pass 1.

    completeness  for parts K of C, |m(C without K) - m(model without K)| over the same gap: K all of C, random halves
    minimality    for each edge (node) of C, how far f moves when it goes; the smallest say what C could do without
    random        f of circuits of the same size and layer profile, at least 100 of them; with `random=0` neither these
                  nor the next
    magnitude     f of the circuit of that size whose senders' writes change most, which asks no gradient
    CPR, CMD      with `scores=`: areas under f (edges by signed importance) and under |1 - f| (by magnitude) over MIB's
                  grid of sizes, by trapezoids from .001 to 1, pruned as MIB does

What a circuit scores depends on ablation, level and data, so all three are in the result; `same_data` says whether it
was judged on what it was found on. Cost: a recorded pass of each side (one for all circuits of a list), then one to
three forward passes per circuit, of which the random ones alone are 100. Limits: ratios of means. With a gap of 0 there
is nothing to be faithful to, an error; with a gap that these prompts do not tell apart from 0 the result says so
(`sound`) in the place of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from interp.circuits.found.circuit import Circuit, Level
from interp.circuits.found.drawing import held
from interp.circuits.found.edge_scores import Edges
from interp.circuits.graph.changes import GraphPair, Written
from interp.circuits.graph.random import largest, like, sizes
from interp.circuits.graph.running import Ablation, Embed
from interp.circuits.judged import GRID, Faithfulness
from interp.circuits.real.ground import Ground
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import reading
from interp.provenance import about
from interp.records import Method, register
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


def faithfulness(
    model: Model,
    circuit: Circuit | Sequence[Circuit],
    task: Task | None = None,
    *,
    base: Any = None,
    source: Any = None,
    metric: Metric | None = None,
    scores: Edges | None = None,
    ablation: Ablation = "resample",
    level: Level = "edge",
    embed: Embed = "whole",
    random: int = 100,
    parts: int = 40,
    seed: int = 0,
    tell: Callable[[int], object] | None = None,
) -> Any:
    """A circuit judged on a task (clean prompts in the circuit, corrupt ones outside it), or on `base=` (inside),
    `source=` (outside) and `metric=`; a list for several circuits. `parts` edges or nodes are tried for minimality, a
    quarter as many halves for completeness. `embed="tokens"` leaves learned positions where embeddings are ablated, as
    EAP-IG and MIB do. `tell` is told after each circuit how many were run."""
    several = [circuit] if isinstance(circuit, Circuit) else circuit
    on = task if task is None or task.model is not None else task.on(model)
    chosen = on.metric if metric is None and on is not None else metric
    with reading(model, chosen) as chosen:
        ground = Ground(_pair(model, on, base, source, chosen), ablation, tell, embed)
        found = [_Trial(ground, one, on, level, seed).judged(scores, random, parts) for one in several]
    return found[0] if isinstance(circuit, Circuit) else found


def _pair(model: Model, task: Task | None, base: Any, source: Any, metric: Metric | None) -> GraphPair:
    if task is not None:
        if base is not None or source is not None:
            raise InputsError("a task brings its own clean and corrupt prompts: give task, or base= and source=.")
        assert metric is not None
        return GraphPair(model, task.clean, task.corrupt, metric)
    if base is None or source is None or metric is None:
        raise InputsError("say what the circuit is judged on: a task, or base=, source= and metric=.")
    return GraphPair(model, base, source, metric)


class _Trial:
    """One circuit."""

    def __init__(self, ground: Ground, circuit: Circuit, task: Task | None, level: Level, seed: int) -> None:
        if circuit.graph != ground.graph:
            raise InputsError(
                "the circuit belongs to another graph: other layers, heads or kv heads than this model's."
            )
        known = get_args(Level)
        if level not in known:
            raise InputsError(f"level is {' or '.join(map(repr, known))}, got {level!r}.")
        self.ground, self.graph, self.level, self.task = ground, ground.graph, level, task
        self.circuit = circuit.as_nodes() if level == "node" else circuit
        self.f, self.run = ground.f, ground.run
        self.draw = torch.Generator().manual_seed(seed)

    def judged(self, scores: Edges | None, random: int, parts: int) -> Faithfulness:
        ground, mask, before = self.ground, self.circuit.mask, self.ground.runner.count
        values = self.run(mask)
        drawn = [self.f(self.run(like(self.graph, mask, self.level, self.draw))) for _ in range(random)]
        completeness, minimality = self._completeness(mask, parts), self._minimality(mask, self.f(values), parts)
        curves = {} if scores is None else {signed: self._curve(scores, signed) for signed in (True, False)}
        magnitude = self.f(self.run(self._largest(mask))) if random else math.nan
        meta = {
            **about(ground.pair.model.module, ground.pair.base), "ablation": ground.ablation, "level": self.level,
            "metric": metric_name(ground.pair.metric), "task": None if self.task is None else self.task.name,
            "edges": len(self.circuit), "fraction": self.circuit.fraction, "nodes": len(self.circuit.nodes),
            "same_data": self.circuit.meta.get("found_on") == ground.pair.base.digest(),
            "circuit": dict(self.circuit.meta), "passes": ground.runner.count - before,
        }  # fmt: skip
        return Faithfulness(
            values=values, whole=ground.whole, nothing=ground.nothing,
            random=torch.tensor(drawn, dtype=torch.float64), magnitude=magnitude, completeness=completeness,
            minimality=minimality, grid=GRID, signed=curves.get(True), unsigned=curves.get(False),
            groups=self._groups(), meta=meta,
        )  # fmt: skip

    def _largest(self, mask: Tensor) -> Tensor:
        """The circuit of the same size whose senders' writes change most."""
        full = self.ground.runner.full
        by = sizes(self.graph, Written(full.embed, full.z, full.mlp), self.ground.pair.carries)
        return largest(self.graph, by, mask, self.level)

    def _groups(self) -> tuple[str, ...]:
        """What prompts share beyond chance: their template, where the task says so."""
        if self.task is None:
            return tuple(map(str, range(len(self.ground.whole))))
        return tuple(str(one.get("template", n)) for n, one in enumerate(self.task.meta))

    def _units(self, mask: Tensor) -> list[tuple[int, int | None]]:
        """The edges, or the nodes (senders), that the circuit is made of."""
        if self.level == "edge":
            return [*held(self.graph, mask)]
        return [(u, None) for u in mask.any(1).nonzero()[:, 0].tolist()]

    def _made(self, units: Sequence[tuple[int, int | None]]) -> Tensor:
        """The mask of some of them."""
        found = torch.zeros_like(self.graph.exists)
        for u, v in units:
            found[u, slice(None) if v is None else v] = True
        return found & self.graph.exists

    def _completeness(self, mask: Tensor, parts: int) -> tuple[float, ...]:
        units, found = self._units(mask), [mask] if parts else []
        for _ in range(parts // 4 if len(units) > 1 else 0):
            some = torch.randperm(len(units), generator=self.draw)[: len(units) // 2].tolist()
            found.append(self._made([units[n] for n in some]))
        gaps = []
        for part in found:
            inside, outside = self.run(mask & ~part), self.run(self.graph.exists & ~part)
            gaps.append(abs(float((inside - outside).mean()) / self.ground.gap))
        return tuple(gaps)

    def _minimality(self, mask: Tensor, f: float, parts: int) -> tuple[float, ...]:
        units = self._units(mask)
        order = torch.randperm(len(units), generator=self.draw)[:parts].tolist()
        return tuple(f - self.f(self.run(mask & ~self._made([units[n]]))) for n in order)

    def _curve(self, scores: Edges, signed: bool) -> tuple[float, ...]:
        if scores.graph != self.graph:
            raise InputsError("the scores belong to another graph than this model's.")
        found = []
        for share in GRID:
            one = scores.circuit(n=int(share * len(scores)), signed=signed)  # as MIB counts, down
            found.append(self.f(self.run((one.as_nodes() if self.level == "node" else one).mask)))
        return tuple(found)


register(
    Method(
        "interp.faithfulness",
        number="f, the share of the gap between nothing and the whole model that the circuit makes up; 1 is all of it",
        shown="curve",
        needs=("metric", "source", "result"),
        label="circuit",
        papers=("2403.17806", "2504.13151"),
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
        passes=lambda t: 2 + 4 + 10,
        example=lambda t: faithfulness(
            t.model, t.of("interp.edges").circuit(fraction=0.1), base=t.base, source=t.source, metric=t.metric,
            random=4, parts=2,
        ),
    )
)  # fmt: skip
