"""What standing at the heads costs: a forward pass attached, and one that records every z, against the bare model.

    .venv/bin/python experiments/bench/overhead.py

A GPT-2-small-shaped random model (12 layers of 12 heads, width 768, its whole vocabulary) on 8 x 64 tokens, two
threads, no download. `bare` is a second module over the same parameters that was never attached; `attached` is the
module with an empty session on it; `record_z` is `m.run(x, record="L*.z")` from the arguments to the tape. All run one
after the other in every round, in an order that turns, and a ratio is the median over rounds of the round's own ratio:
what else the machine does slows both sides of a pair. Cost: four forward passes a round, about two minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import nn

import interp

Side = Callable[[], object]


def model() -> nn.Module:
    """The shape of GPT-2 small with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def twin(module: nn.Module) -> nn.Module:
    """Another module over the same parameters, which nobody has looked into."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def sides(batch: int, length: int) -> dict[str, Side]:
    """The ways to run one batch."""
    module = model()
    bare = twin(module)
    m = interp.attach(module)
    kwargs = {"input_ids": torch.randint(0, module.config.vocab_size, (batch, length))}
    x = m.inputs(kwargs)
    m.check().raise_failed()

    def plainly(one: nn.Module) -> object:
        with torch.no_grad():
            return one(**kwargs)

    def attached() -> object:
        with m.edited([]):
            return plainly(module)

    return {
        "bare": lambda: plainly(bare),
        "again": lambda: plainly(bare),
        "attached": attached,
        "record_z": lambda: m.run(x, record="L*.z"),
    }


def rounds(runs: dict[str, Side], count: int) -> list[dict[str, float]]:
    """Seconds of every side in every round; each round starts with another side."""
    names = list(runs)
    seconds = []
    for n in range(-1, count):
        order = names[n % len(names) :] + names[: n % len(names)]
        taken = {name: timed(runs[name]) for name in order}
        if n >= 0:
            seconds.append(taken)
    return seconds


def timed(run: Side) -> float:
    """Seconds from the arguments to the result; giving the result back is not counted."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(2)
    measured = rounds(sides(given.batch, given.length), given.rounds)
    print(f"bare: median {median(r['bare'] for r in measured) * 1e3:.0f} ms over {len(measured)} rounds")
    ratios = {}
    for name in ("again", "attached", "record_z"):
        each = [r[name] / r["bare"] for r in measured]
        low, _, high = quantiles(each, n=4)
        ratios[name] = round(median(each), 4)
        print(f"{name + ' / bare':<16} {ratios[name]:.4f}  (half of the rounds in {low:.3f} to {high:.3f})")
    print("'again' is the bare model against itself: how far from 1 the machine's noise alone is.")
    print(json.dumps({"bench": "overhead", "attached": ratios["attached"], "record_z": ratios["record_z"]}))


if __name__ == "__main__":
    main()
