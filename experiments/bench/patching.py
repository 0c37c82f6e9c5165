"""Exact patching sweeps against what others offer, on the same random model and prompts, with the same numbers.

    python experiments/bench/patching.py                       # about half an hour on two quiet cores
    python experiments/bench/patching.py --rounds 1 --prompts 2 --quick     # TransformerLens only, two minutes

Sweeps of a GPT-2-small-shaped random model: every head's z over all positions, and the residual at every layer and
position, on two shapes of pair: 16 tokens that differ from token 4 on, 15 that differ from token 10 on (the shape of
IOI). Both sides start from the two batches of ids and end with the grid of mean effects; rounds are interleaved, and a
ratio is the peer's time over ours, the median over rounds. `same_gemm` gives TransformerLens the matrix products that
ours chose. The floor is counted: operations that must be done over the best fp32 GEMM rate measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from _products import best_rate
from patching_peers import RIGHT, WRONG, Sweep, peers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import interp
from interp.hooks.drive.faster import products, quicker
from interp.metrics.shipped import LogitDifference

LAYERS, HEADS, WIDTH, VOCAB = 12, 12, 768, 50257
SHAPES = {"": (16, 4), "ioi_": (15, 10)}
ONCE = ("nnsight", "nnsight_batched", "pyvene", "hook_loop")
"""Peers that are raced in the first shape only."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config()).eval()
    model, others = interp.attach(module), peers(module)
    model.ready()
    found: dict[str, Any] = {"bench": "patching", "products": quicker(torch.empty(0, WIDTH))}
    worst = 0.0
    for name, (length, first) in SHAPES.items():
        base, source = _pair(options.prompts, length, first)
        for kind, sites, positions in (("head", "L*.H*.z", "joint"), ("resid", "L*.resid_pre", "each")):
            raced: dict[str, Callable[[], Tensor]]
            raced = {n: partial(peer, base, source, kind, first) for n, peer in _raced(others, name, options).items()}
            if not name:
                raced["transformer_lens_same_gemm"] = partial(_with, found["products"], raced["transformer_lens"])
            ours = partial(_ours, model, base, source, sites, positions)
            mine, times, gaps = _race(ours, raced, options.rounds)
            worst = max(worst, *gaps.values())
            for peer, seconds in times.items():
                ratio = median(t / o for o, t in zip(mine, seconds, strict=True))
                found[f"{name}{kind}_vs_{peer}"] = round(ratio, 2)
                print(f"{name}{kind}: {peer} {median(seconds):.2f} s, {ratio:.1f} times; differs by {gaps[peer]:.2g}")
            floor = _operations(kind, options.prompts, length, first) / best_rate(4096, WIDTH, 4 * WIDTH, times=10)
            found[f"{name}{kind}_vs_floor"] = round(median(mine) / floor, 2)
            print(f"{name}{kind}: ours {median(mine):.2f} s, floor {floor:.2f} s", flush=True)
    print(json.dumps(found | {"max_abs_diff": worst}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="TransformerLens only")
    return parser.parse_args()


def _raced(others: dict[str, Sweep], shape: str, options: argparse.Namespace) -> dict[str, Sweep]:
    return {name: peer for name, peer in others.items() if name not in ONCE or not (shape or options.quick)}


def _with(name: str, work: Callable[[], Tensor]) -> Tensor:
    with products(name):
        return work()


def _pair(prompts: int, length: int, first: int) -> tuple[Tensor, Tensor]:
    base = torch.randint(0, VOCAB, (prompts, length))
    return base, torch.cat([base[:, :first], torch.randint(0, VOCAB, (prompts, length - first))], 1)


def _ours(model: interp.Model, base: Tensor, source: Tensor, sites: str, positions: str) -> Tensor:
    rows = len(base)
    metric = LogitDifference(answers=((RIGHT,),) * rows, wrong=((WRONG,),) * rows)
    e = interp.patch(
        model, base={"input_ids": base}, source={"input_ids": source}, metric=metric, sites=sites, positions=positions
    )
    return torch.tensor(e.to_array().values)


def _race(
    ours: Callable[[], Tensor], raced: dict[str, Callable[[], Tensor]], rounds: int
) -> tuple[list[float], dict[str, list[float]], dict[str, float]]:
    mine: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in raced}
    gaps = dict.fromkeys(raced, 0.0)
    for _ in range(rounds):
        grid, seconds = _timed(ours)
        mine.append(seconds)
        for name, work in raced.items():
            theirs, seconds = _timed(work)
            times[name].append(seconds)
            gaps[name] = max(gaps[name], float((grid - theirs).abs().max()))
    return mine, times, gaps


def _timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


def _operations(kind: str, prompts: int, length: int, first: int) -> float:
    """Multiply-adds count two. Suffix columns only, from the patch's layer on, the last layer's MLP at one column."""
    qkv, out, mlp = 6 * WIDTH**2, 2 * WIDTH**2, 16 * WIDTH**2
    total = 0.0
    widths = [length - first] * HEADS if kind == "head" else [length - p for p in range(first, length)]
    for layer in range(LAYERS):
        for width in widths:
            whole = LAYERS - 1 - layer
            here = (out + mlp) if kind == "head" else (qkv + out + mlp)
            total += width * (whole * (qkv + out + mlp) + here) - (width - 1) * (out + mlp)
    return total * prompts


if __name__ == "__main__":
    main()
