"""Exact patching sweeps against TransformerLens' loop, on the same random model and prompts, with the same numbers.

    python experiments/bench/patching.py            # about ten minutes on two quiet cores
    python experiments/bench/patching.py --rounds 1 --prompts 2

Sweeps of a GPT-2-small-shaped random model: every head's z over all positions, and the residual at every layer and
position, on two shapes of pair: 16 tokens that differ from token 4 on, 15 that differ from token 10 on (the shape of
IOI). Both sides start from the two batches of ids and end with the grid of mean effects; rounds are interleaved, and a
ratio is the peer's time over ours, the median over rounds. The floor is counted: operations that must be done over the
best fp32 GEMM rate measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import interp
from interp.metrics import LogitDifference

LAYERS, HEADS, WIDTH, VOCAB = 12, 12, 768, 50257
SHAPES = {"": (16, 4), "ioi_": (15, 10)}
RIGHT, WRONG = 464, 262


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config()).eval()
    model, bridge = interp.attach(module), _bridge(module)
    found: dict[str, Any] = {"bench": "patching"}
    worst = 0.0
    for name, (length, first) in SHAPES.items():
        base, source = _pair(options.prompts, length, first)
        for kind, sites, positions in (("head", "L*.H*.z", "joint"), ("resid", "L*.resid_pre", "each")):
            ours, theirs, gap = _race(
                partial(_ours, model, base, source, sites, positions),
                partial(_theirs, bridge, base, source, kind),
                options.rounds,
            )
            worst = max(worst, gap)
            found[f"{name}{kind}_vs_transformer_lens"] = round(
                median(t / o for o, t in zip(ours, theirs, strict=True)), 2
            )
            floor = _operations(kind, options.prompts, length, first) / _gemm_rate()
            found[f"{name}{kind}_vs_floor"] = round(median(ours) / floor, 2)
            print(
                f"{name}{kind}: ours {median(ours):.2f} s, TransformerLens {median(theirs):.2f} s, floor {floor:.2f} s"
            )
    print(json.dumps(found | {"max_abs_diff": worst}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


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


def _theirs(bridge: Any, base: Tensor, source: Tensor, kind: str) -> Tensor:
    from transformer_lens import patching

    sweep = patching.get_act_patch_attn_head_out_all_pos if kind == "head" else patching.get_act_patch_resid_pre
    with torch.no_grad():
        _, cache = bridge.run_with_cache(source)
        plain = _difference(bridge(base))
        return torch.as_tensor(sweep(bridge, base, cache, _difference)).double() - float(plain)


def _difference(logits: Tensor) -> Tensor:
    return (logits[:, -1, RIGHT] - logits[:, -1, WRONG]).mean()


def _race(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], rounds: int
) -> tuple[list[float], list[float], float]:
    mine, peers, gap = [], [], 0.0
    for _ in range(rounds):
        a, seconds = _timed(ours)
        mine.append(seconds)
        b, seconds = _timed(theirs)
        peers.append(seconds)
        gap = max(gap, float((a - b).abs().max()))
    return mine, peers, gap


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


def _gemm_rate() -> float:
    a, b, best = torch.randn(4096, WIDTH), torch.randn(WIDTH, 4 * WIDTH), 0.0
    for _ in range(10):
        _, seconds = _timed(lambda: a @ b)
        best = max(best, 2 * 4096 * WIDTH * 4 * WIDTH / seconds)
    return best


def _bridge(module: GPT2LMHeadModel) -> Any:
    """TransformerLens' bridge around a copy: it rebuilds the module it is given."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    inner = copy.deepcopy(module)
    inner.set_attn_implementation("eager")
    return build_bridge_from_module(inner, "GPT2LMHeadModel", hf_config=inner.config)


if __name__ == "__main__":
    main()
