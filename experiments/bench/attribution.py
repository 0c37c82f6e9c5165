"""What attribution costs, in forward passes of the bare model.

    python experiments/bench/attribution.py

A Llama-shaped random model of 16 layers and 16 heads over 4 x 64 tokens, two threads, no download. `relp_forwards` is
the time of `interp.attribute(method="relp", sites="L*.H*.z", verify=0)`, everything included, over that of one forward
pass without a gradient: two forward passes and one backward are 3 to 4. Both run one after the other in every round, in
an order that turns, and the ratio is the median over rounds. The first call, which also compares with a run without
rules, is not counted. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.metrics import LogitDifference


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=options.width, intermediate_size=3 * options.width, num_hidden_layers=16,
        num_attention_heads=16, num_key_value_heads=8,
    )  # fmt: skip
    m = interp.attach(LlamaForCausalLM(config).eval())
    base, source = ({"input_ids": torch.randint(5, 8192, (4, 64))} for _ in range(2))
    metric = LogitDifference(answers=((7,),) * 4, wrong=((8,),) * 4)

    def relp() -> object:
        return interp.attribute(m, base=base, source=source, metric=metric, sites="L*.H*.z", method="relp", verify=0)

    def bare() -> object:
        with torch.no_grad():
            return m.module(**base, use_cache=False)

    relp(), bare()
    ratios = [_ratio(relp, bare, turned=bool(n % 2)) for n in range(options.rounds)]
    print(f"relp over bare: {', '.join(f'{r:.2f}' for r in ratios)}")
    print(json.dumps({"bench": "attribution", "relp_forwards": round(median(ratios), 2)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=1024)
    return parser.parse_args()


def _ratio(one: Callable[[], object], other: Callable[[], object], *, turned: bool) -> float:
    seconds = {side: _timed(side) for side in ((other, one) if turned else (one, other))}
    return seconds[one] / seconds[other]


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
