"""Does a circuit do what the model does: faithfulness, completeness, minimality, and what chance would have given.

`f(C) = (m(C) - m(nothing)) / (m(model) - m(nothing))`, means over prompts before the ratio; everything outside C takes
another run's values (resample), their mean over real positions, or zero, and C computes on the clean prompts, edge by
edge (`interp/circuits/graph/running.py`) or by whole nodes (Wang et al. 2023, arXiv 2211.00593; Mueller et al. 2025,
MIB, 2504.13151). 0 is nothing and 1 the whole model; f is not clipped and may pass 1.

    completeness  for parts K of C, |m(C without K) - m(model without K)| over the same gap: K all of C, random halves
    minimality    for each edge (node) of C, how far f moves when it goes; the smallest say what C could do without
    random        f of circuits of the same size and layer profile, at least 100 of them
    magnitude     f of the circuit of that size whose senders' writes change most, which asks no gradient
    CPR, CMD      with `scores=`: areas under f (edges by signed importance) and under |1 - f| (by magnitude) over MIB's
                  grid of sizes, by trapezoids from .001 to 1, pruned as MIB does

What a circuit scores depends on ablation, level and data, so all three are in the result; `same_data` says whether it
was judged on what it was found on. Cost: a recorded pass of each side, then one to two forward passes per circuit, of
which the random ones alone are 100. Limits: ratios of means; with a gap near 0 there is nothing to be faithful to, an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.circuits.circuit import Circuit, Level
from interp.circuits.edge_scores import Edges
from interp.circuits.graph.changes import GraphPair, Written
from interp.circuits.graph.running import Ablation, Runner
from interp.circuits.judged import GRID, Faithfulness
from interp.circuits.random import largest, like, sizes
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
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
    random: int = 100,
    parts: int = 40,
    seed: int = 0,
) -> Any:
    """A circuit judged on a task (clean prompts in the circuit, corrupt ones outside it), or on `base=` (inside),
    `source=` (outside) and `metric=`; a list for several circuits. `parts` edges or nodes are tried for minimality, a
    quarter as many halves for completeness."""
    if not isinstance(circuit, Circuit):
        how: dict[str, Any] = {"base": base, "source": source, "metric": metric, "scores": scores}
        how |= {"ablation": ablation, "level": level, "random": random, "parts": parts, "seed": seed}
        return [faithfulness(model, one, task, **how) for one in circuit]
    on = task if task is None or task.model is not None else task.on(model)
    chosen = on.metric if metric is None and on is not None else metric
    with reading(model, chosen):
        pair = _pair(model, on, base, source, chosen)
        return _Trial(pair, circuit, on, ablation, level, seed).judged(scores, random, parts)


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
    """One circuit, one ablation."""

    def __init__(
        self, pair: GraphPair, circuit: Circuit, task: Task | None, ablation: Ablation, level: Level, seed: int
    ) -> None:
        if circuit.graph != pair.graph:
            raise InputsError(
                "the circuit belongs to another graph: other layers, heads or kv heads than this model's."
            )
        for name, value, known in (
            ("ablation", ablation, ("resample", "mean", "zero")),
            ("level", level, ("edge", "node")),
        ):
            if value not in known:
                raise InputsError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}.")
        self.pair, self.graph, self.level, self.task, self.ablation = pair, pair.graph, level, task, ablation
        self.circuit = circuit.as_nodes() if level == "node" else circuit
        self.runner = Runner(pair, ablation)
        self.whole, self.nothing = self.runner.base, self.runner(torch.zeros_like(self.graph.exists))
        self.gap = float((self.whole - self.nothing).mean())
        self.draw = torch.Generator().manual_seed(seed)
        if abs(self.gap) < 1e-6 * max(1.0, float(self.whole.abs().max())):
            raise InputsError(
                f"the metric of the model and of nothing differs by {self.gap:.3g}: there is nothing to be faithful to."
            )

    def f(self, values: Tensor) -> float:
        return float((values - self.nothing).mean()) / self.gap

    def judged(self, scores: Edges | None, random: int, parts: int) -> Faithfulness:
        mask = self.circuit.mask
        values = self.runner(mask)
        drawn = [self.f(self.runner(like(self.graph, mask, self.level, self.draw))) for _ in range(random)]
        more = Written(self.runner.full.embed, self.runner.full.z, self.runner.full.mlp)
        big = largest(self.graph, sizes(self.graph, more, self.pair.carries), mask, self.level)
        completeness, minimality = self._completeness(mask, parts), self._minimality(mask, self.f(values), parts)
        curves = {} if scores is None else {signed: self._curve(scores, signed) for signed in (True, False)}
        meta = {
            **about(self.pair.model.module, self.pair.base), "ablation": self.ablation, "level": self.level,
            "metric": repr(self.pair.metric), "task": None if self.task is None else self.task.name,
            "edges": len(self.circuit), "fraction": self.circuit.fraction, "nodes": len(self.circuit.nodes),
            "same_data": self.circuit.meta.get("found_on") == self.pair.base.digest(),
            "circuit": dict(self.circuit.meta), "passes": self.runner.count,
        }  # fmt: skip
        return Faithfulness(
            values=values, whole=self.whole, nothing=self.nothing, random=torch.tensor(drawn, dtype=torch.float64),
            magnitude=self.f(self.runner(big)), completeness=completeness, minimality=minimality, grid=GRID,
            signed=curves.get(True), unsigned=curves.get(False), groups=self._groups(), meta=meta,
        )  # fmt: skip

    def _groups(self) -> tuple[str, ...]:
        """What prompts share beyond chance: their template, where the task says so."""
        if self.task is None:
            return tuple(map(str, range(len(self.whole))))
        return tuple(str(one.get("template", n)) for n, one in enumerate(self.task.meta))

    def _units(self, mask: Tensor) -> list[Tensor]:
        """The edges, or the nodes' edges, that the circuit is made of."""
        if self.level == "edge":
            return [self.graph.mask([edge]) for edge in self.graph.edges if bool(mask[edge])]
        rows = mask.any(1).nonzero()[:, 0].tolist()
        return [(torch.arange(len(mask)) == u)[:, None] & self.graph.exists for u in rows]

    def _completeness(self, mask: Tensor, parts: int) -> tuple[float, ...]:
        units, found = self._units(mask), [mask] if parts else []
        for _ in range(parts // 4 if len(units) > 1 else 0):
            some = torch.randperm(len(units), generator=self.draw)[: len(units) // 2].tolist()
            found.append(torch.stack([units[n] for n in some]).any(0))
        gaps = []
        for part in found:
            inside, outside = self.runner(mask & ~part), self.runner(self.graph.exists & ~part)
            gaps.append(abs(float((inside - outside).mean()) / self.gap))
        return tuple(gaps)

    def _minimality(self, mask: Tensor, f: float, parts: int) -> tuple[float, ...]:
        units = self._units(mask)
        order = torch.randperm(len(units), generator=self.draw)[:parts].tolist()
        return tuple(f - self.f(self.runner(mask & ~units[n])) for n in order)

    def _curve(self, scores: Edges, signed: bool) -> tuple[float, ...]:
        if scores.graph != self.graph:
            raise InputsError("the scores belong to another graph than this model's.")
        found = []
        for share in GRID:
            one = scores.circuit(fraction=share, signed=signed)
            found.append(self.f(self.runner((one.as_nodes() if self.level == "node" else one).mask)))
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
