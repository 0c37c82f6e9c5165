"""A circuit for indirect object identification, found on one split and judged on another.

    python experiments/circuit_ioi.py --model zoo:ioi

Edges are scored by EAP-IG on `--n` prompts (base clean, source corrupt: noising), then cut at growing sizes by signed
importance; the smallest circuit of at most 10% of the edges whose f on these same prompts is within 0.05 of 1 is kept,
else the one that comes nearest. It is judged once, on the held-out names and templates, with other prompts outside the
circuit (resample, edge by edge): |1 - f| <= 0.1 is the target, and a miss is reported as one. Beside it: completeness,
minimality, 100 random circuits of the same size and layer profile, the circuit of the largest changes, CPR and CMD,
mean and zero ablation, and the same edges as whole nodes. Writes runs/circuit_ioi (scores, circuit, drawing, tables)
and ends with one JSON line. Cost: half a minute of one core at n=32.

Held-out prompts of one seed get seen while things are tried. `--blind SEED` judges once more on prompts nobody has run:
the beginnings of held-out templates with the endings of other ones, held-out names, drawn from a seed that was not
known when the prediction was written down (the hash of the commit that wrote it; see LOG.md).
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import interp
from interp.prompts.names import NAMES, OBJECTS, PLACES, TEMPLATES, IoiRow
from interp.prompts.rows import Row
from interp.tasks.task import Task

SIZES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
NEAR, TARGET = 0.05, 0.1


def main() -> None:
    options = _options()
    m = interp.load(options.model)
    task = interp.tasks.ioi(m, n=options.n)
    scores = interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, steps=options.steps)
    print(scores)
    circuit = chosen(m, task, scores)
    judged = interp.faithfulness(m, circuit, task.heldout, scores=scores, random=options.random)
    print(judged)
    others = {name: _f(m, circuit, task.heldout, **how) for name, how in OTHERS.items()}
    out = Path(options.out)
    found = {**judged.summary(), "direction": scores.direction, "train_f": _f(m, circuit, task), "others": others,
             "target": TARGET, "met": judged.distance <= TARGET}  # fmt: skip
    if options.blind is not None:
        unseen = interp.faithfulness(m, circuit, blind(m, options.n, options.blind), random=options.random)
        print(f"blind: {unseen}")
        found["blind"] = {"seed": options.blind, **unseen.summary(), "met": unseen.distance <= TARGET}
    _write(out, scores, circuit, judged, found)
    print(f"wrote {out}")
    print(json.dumps({"experiment": "circuit_ioi", "model": options.model, "n": options.n, **_short(found)}))


OTHERS: dict[str, dict[str, Any]] = {
    "mean": {"ablation": "mean"},
    "zero": {"ablation": "zero"},
    "nodes": {"level": "node"},
}


def chosen(m: interp.Model, task: Task, scores: interp.circuits.Edges) -> interp.Circuit:
    """The smallest circuit that is near 1 on the prompts it was found on, else the nearest."""
    tried = []
    for size in SIZES:
        circuit = scores.circuit(fraction=size, signed=True)
        f = _f(m, circuit, task)
        print(f"{size:5.0%} of the edges, {len(circuit)} after pruning: f {f:.3f} where it was found", flush=True)
        tried.append((abs(1 - f), circuit))
        if abs(1 - f) <= NEAR:
            return circuit
    return min(tried, key=lambda pair: pair[0])[1]


def blind(m: interp.Model, n: int, seed: str) -> Task:
    """Prompts of held-out names in crossed held-out templates; the subject changes in the corrupt ones."""
    rng, templates, rows = random.Random(f"blind {seed}"), crossed(), []
    for i in range(n):
        x, y = rng.sample(NAMES["heldout"], 2)
        who = {"x": x, "y": y, "s": y if i % 2 == 0 else x}
        clean = IoiRow(rng.choice(templates), **who, place=rng.choice(PLACES), object=rng.choice(OBJECTS))
        corrupt = replace(clean, s=clean.io)
        rows.append(Row(clean=clean.text, corrupt=corrupt.text, answers=(f" {clean.io}",), wrong=(f" {clean.s}",)))
    return Task("ioi, blind", tuple(rows)).on(m)


def crossed() -> list[str]:
    """Each held-out template up to where the subject acts, with what the subject does in each other one."""
    cut = [(t[: t.index("{s}")], t[t.index("{s}") :]) for t in TEMPLATES["heldout"]]
    return [start + end for i, (start, _) in enumerate(cut) for j, (_, end) in enumerate(cut) if i != j]


def _f(m: interp.Model, circuit: interp.Circuit, task: Task, **how: Any) -> float:
    found: float = interp.faithfulness(m, circuit, task, random=0, parts=0, **how).f
    return found


def _write(
    out: Path,
    scores: interp.circuits.Edges,
    circuit: interp.Circuit,
    judged: interp.circuits.Faithfulness,
    found: dict[str, Any],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    scores.save(out / "edges")
    judged.save(out / "faithfulness")
    circuit.save(out / "circuit.json")
    circuit.draw(out / "circuit.svg", title="Indirect object identification")
    circuit.to_frame().to_csv(out / "circuit.csv", index=False)
    judged.to_frame().to_csv(out / "prompts.csv", index=False)
    (out / "summary.json").write_text(json.dumps(found, indent=1))


def _short(value: Any) -> Any:
    """Three decimals."""
    if isinstance(value, float):
        return round(value, 3)
    return {key: _short(one) for key, one in value.items()} if isinstance(value, dict) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:ioi")
    parser.add_argument("--n", type=int, default=32, help="prompts of each split")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--random", type=int, default=100, help="random circuits")
    parser.add_argument("--blind", metavar="SEED", help="judge once more on prompts drawn from this seed")
    parser.add_argument("--out", default="runs/circuit_ioi")
    return parser.parse_args()


if __name__ == "__main__":
    main()
