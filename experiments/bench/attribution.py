"""What attribution costs: time in forward passes of the bare model, and memory in tapes.

    python experiments/bench/attribution.py

A Llama-shaped random model of 16 layers and 16 heads over 4 x 64 tokens, two threads, no download. `relp_forwards` is
the time of `interp.attribute(method="relp", sites="L*.H*.z", verify=0)`, everything included, over that of one forward
pass without a gradient: two forward passes and one backward are 3 to 4. Both run one after the other in every round, in
an order that turns, and the ratio is the median over rounds. The first call, which also compares with a run without
rules, is not counted.

`edges_peak_ratio` is the most bytes that `interp.edges` holds at once above the model, over the bytes of a tape with z
and resid_pre of every layer: the worst of eap, eap-ig and relp. Every tensor that an operation of torch
makes counts from then until its memory is given back, so it is a sum and not a measurement; scratch inside an operation
does not count. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import weakref
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.metrics.shipped import LogitDifference

LAYERS, ROWS, LENGTH = 16, 4, 64
METHODS = ("eap", "eap-ig", "relp")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=options.width, intermediate_size=3 * options.width, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=8,
    )  # fmt: skip
    m = interp.attach(LlamaForCausalLM(config).eval())
    base, source = ({"input_ids": torch.randint(5, 8192, (ROWS, LENGTH))} for _ in range(2))
    metric = LogitDifference(answers=((7,),) * ROWS, wrong=((8,),) * ROWS)

    def relp() -> object:
        return interp.attribute(m, base=base, source=source, metric=metric, sites="L*.H*.z", method="relp", verify=0)

    def bare() -> object:
        with torch.no_grad():
            return m.module(**base, use_cache=False)

    relp(), bare()
    ratios = [_ratio(relp, bare, turned=bool(n % 2)) for n in range(options.rounds)]
    print(f"relp over bare: {', '.join(f'{r:.2f}' for r in ratios)}")
    tape = 2 * LAYERS * ROWS * LENGTH * options.width * 4
    asked = partial(interp.edges, m, base=base, source=source, metric=metric, steps=1)
    peaks = {method: peak(m.module, partial(asked, method=method)) / tape for method in METHODS}
    print(f"edges over tapes of {tape / 2**20:.0f} MiB: {', '.join(f'{n} {r:.2f}' for n, r in peaks.items())}")
    found = {"relp_forwards": round(median(ratios), 2), "edges_peak_ratio": round(max(peaks.values()), 2)}
    print(json.dumps({"bench": "attribution", **found}))


def peak(module: torch.nn.Module, call: Callable[[], object]) -> int:
    """The most bytes that stand at once during a call, its result included, parameters and buffers not."""
    gc.collect()
    with _Standing(module) as standing:
        call()
    return standing.most


class _Standing(TorchDispatchMode):
    """Adds up the storages that operations make, until they are given back."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.sizes = {x.untyped_storage()._cdata: 0 for x in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if torch.is_tensor(x) and x.untyped_storage()._cdata not in self.sizes:
                self._count(x.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, name: int) -> None:
        self.now -= self.sizes.pop(name)


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
