"""Pruning heads: accuracy and speed against the number kept, by importance, at random and by magnitude.

    python experiments/prune.py --model zoo:shapes-vit

Heads are scored by zero ablation on `--n` prompts (`--by` names another measure of interp.importance), then cut out of
the weights at every share, at one half also with scores taken again in `--steps` steps, and judged on `--heldout`
prompts of the held-out split. Speed is the time of one forward pass over these, whole and cut model in turn, the least
of `--rounds`; what the removed operations predict is counted in a forward pass of each (products of matrices,
attention's too), and reported as predicted time over measured time: 1 where the machine gains what was counted, below 1
where the rest of the pass (norms, activations, calls) stays as long as it was. Writes runs/prune (scores, curve,
figure, the half-size model) and ends with one JSON line. Cost: about a minute of one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import interp

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
TASKS: dict[str, Callable[..., interp.Task]] = {
    "zoo:shapes-vit": interp.tasks.shapes,
    "zoo:shapes-vit-registers": interp.tasks.shapes,
    "zoo:shapes-lvlm": interp.tasks.shapes,
    "zoo:ioi": interp.tasks.ioi,
    "zoo:planted-decoder": interp.tasks.key_value,
}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    m = interp.load(options.model)
    task, heldout = (TASKS[options.model](m, n=n, split=split)
                     for n, split in ((options.n, "train"), (options.heldout, "heldout")))  # fmt: skip
    scores = interp.importance(m, task, by=options.by).scores(options.by)
    half = interp.prune(m, scores, keep_fraction=0.5, how="cut")
    print(half)
    found = half.curve(heldout, fractions=options.shares, random=options.draws, rounds=options.rounds)
    table = found.to_frame().assign(predicted=None)
    for share in options.shares:
        smaller = interp.prune(m, scores, keep_fraction=share, how="cut").model
        ours = (table["order"] == "scores") & ((table["share"] - share).abs() < 0.5 / len(scores))
        table.loc[ours, "predicted"] = operations(smaller, heldout) / operations(m, heldout)
    print(table.to_string(index=False))
    made = {**summary(table, half), "rescored_half": rescored(m, task, heldout, options)}
    _write(Path(options.out), half, found, table, scores, made)
    print(json.dumps({"experiment": "prune", "model": options.model, "by": options.by, **made}))


def operations(m: interp.Model, task: interp.Task) -> int:
    """What the products of matrices of one forward pass take; only eager attention shows its own to the counter."""
    module = copy.deepcopy(m.module)
    if hasattr(module, "set_attn_implementation"):
        module.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**m.called_with(task.take(range(1)).clean.kwargs))
    total: int = counter.get_total_flops()
    return total


def rescored(m: interp.Model, task: interp.Task, heldout: interp.Task, options: argparse.Namespace) -> float:
    """Held-out accuracy with half of the heads, scored again after each of some steps."""

    def scores(own: interp.Model) -> dict[str, float]:
        found: dict[str, float] = interp.importance(own, task.on(own), by=options.by).scores(options.by)
        return found

    found = interp.prune(m, scores, keep_fraction=0.5, schedule=options.steps, how="cut")
    right = heldout.on(found.model).right()
    return round(sum(right) / len(right), 4)


def summary(table: Any, half: Any) -> dict[str, Any]:
    """Accuracy and speed with half of the heads, and the fewest heads within one point."""
    by = {order: part.set_index("share") for order, part in table.groupby("order")}
    ours, share = by["scores"], min(table["share"], key=lambda s: abs(s - 0.5))
    row, whole = ours.loc[share], float(ours.loc[1.0, "metric"])
    close = [int(kept) for kept, metric in zip(ours["kept"], ours["metric"], strict=True) if metric >= whole - 0.01]
    return {
        "heads": half.counts["heads"], "parameters": half.counts["parameters"], "accuracy": round(whole, 4),
        "accuracy_half": round(float(row["metric"]), 4),
        "random_half": round(float(by["random"].loc[share, "metric"]), 4),
        "magnitude_half": round(float(by["magnitude"].loc[share, "metric"]), 4),
        "fewest_within_a_point": min(close), "time_half": round(float(row["ratio"]), 3),
        "predicted_half": round(float(row["predicted"]), 3),
        "predicted_over_measured": round(float(row["predicted"] / row["ratio"]), 3), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _write(out: Path, half: Any, found: Any, table: Any, scores: dict[str, float], made: dict[str, Any]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    table.to_csv(out / "curve.csv", index=False)
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    found.plot().write_html(out / "curve.html", include_plotlyjs=True, config={"displaylogo": False})
    half.save(out / "half")
    (out / "summary.json").write_text(json.dumps(made, indent=1))
    print(f"wrote {out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:shapes-vit", choices=sorted(TASKS))
    parser.add_argument("--by", default="zero", help="a measure of interp.importance")
    parser.add_argument("--n", type=int, default=64, help="prompts that score the heads")
    parser.add_argument("--heldout", type=int, default=300, help="prompts that judge")
    parser.add_argument("--draws", type=int, default=5, help="random orders")
    parser.add_argument("--rounds", type=int, default=5, help="times each speed is measured")
    parser.add_argument("--steps", type=int, default=4, help="of the schedule that scores heads again on the way")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of heads kept; 1 has to be among them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/prune")
    return parser.parse_args()


if __name__ == "__main__":
    main()
