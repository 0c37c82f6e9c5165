"""Sinks of a long text on a CPU: does memory grow in proportion to length, and how long does it take?

    python experiments/bench/sinks.py --length 32768

A Llama of zoo:needle's shape with random weights reads random tokens of a quarter, half and all of the length, each in
a process of its own. `mb` is how much resident memory grows while `interp.sinks` runs (activations included), after a
short text that loads everything; `per_doubling` is how the growth of the second doubling compares with that of the
first, which is 2 where memory is linear in length and 4 where a pattern is held. `streaming` runs the same text with
`interp.edits.Streaming` on every head instead; its seconds should grow like memory, those of sinks up to fourfold. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp

SHAPE = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 541}  # fmt: skip
WARM, LINEAR = 256, 2.6


def model(length: int) -> interp.Model:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=length, attention_bias=True)
    return interp.attach(LlamaForCausalLM(config).eval())


def measured(what: str, length: int) -> dict[str, float]:
    """Megabytes by which memory grows, and seconds, of one side in this process."""
    m = model(length)
    run: dict[str, Callable[[Any], object]] = {
        "sinks": lambda x: interp.sinks(m, x),
        "streaming": lambda x: m.run(x, edits=[interp.edits.Streaming("L*.H*", first=4, recent=512)]),
    }
    texts = [{"input_ids": torch.randint(SHAPE["vocab_size"], (1, n))} for n in (WARM, length)]
    run[what](texts[0])
    before, start = resident(), time.perf_counter()
    run[what](texts[1])
    return {"mb": round(resident() - before, 1), "seconds": round(time.perf_counter() - start, 2)}


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(what: str, length: int, threads: int) -> dict[str, float]:
    """The same in a process of its own, whose memory nothing else has used."""
    command = [sys.executable, __file__, "--only", what, "--length", str(length), "--threads", str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    print(f"{what} of {length} tokens: {found}", flush=True)
    return found


def per_doubling(mb: list[float]) -> float:
    """Growth from half to all of the length over that from a quarter to half."""
    return round((mb[2] - mb[1]) / max(mb[1] - mb[0], 1e-9), 2)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--length", type=int, default=32768)
    given.add_argument("--threads", type=int, default=torch.get_num_threads())
    given.add_argument("--only", choices=["sinks", "streaming"], help=argparse.SUPPRESS)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(measured(args.only, args.length)))
        return
    lengths = [args.length // 4, args.length // 2, args.length]
    said: dict[str, Any] = {
        "bench": "sinks",
        "length": args.length,
        "threads": args.threads,
        "load": os.getloadavg()[0],
    }
    for what in ("sinks", "streaming"):
        found = [apart(what, length, args.threads) for length in lengths]
        mb = [one["mb"] for one in found]
        said[what] = {
            "mb": mb,
            "seconds": [one["seconds"] for one in found],
            "mb_per_doubling": per_doubling(mb),
            "linear": per_doubling(mb) <= LINEAR,
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
