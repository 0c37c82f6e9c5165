"""Operators against torch's scaled_dot_product_attention on the same queries, keys and values.

    python experiments/bench/operators.py                          # 4,096 and 16,384 tokens, one JSON line
    python experiments/bench/operators.py --lengths 1024 4096      # other lengths
    python experiments/bench/operators.py --out runs/operators     # goes on where it was stopped

All sides of a mask and width take turns in one process, a round after the other, and the best of each counts, so that
a busy machine disturbs all alike. Operators of causal towers stand against causal attention, those that see all keys
(`full`) against attention that does; `saving` is softmax's multiplications over the operator's own count, `speedup`
SDPA's time over the operator's. Beside them, what the classes of blocks of a mask say it should save: blocks of 128 x
128 of the causal mask over those that are not empty. Each time is written as it is taken. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import EMPTY, Causal, Full, Mask, PowerBlocks, Prefix, Window
from interp.operators import Agent, InLine, Linear, Masked, PrefixScan, RankAugmented, slopes

CAUSAL: dict[str, Any] = {
    "linear elu": Linear("L0"),
    "linear exp": Linear("L0", "exp"),
    "lightning": Linear("L0", "silu", rate=slopes(4), normalize=False),
    "inline": InLine("L0"),
    "rala": RankAugmented("L0"),
    "window 256": Masked("L0", Window(256)),
    "sinks and window": Masked("L0", Window(256) | Prefix(4)),
    "power blocks": Masked("L0", PowerBlocks(256, 2)),
}
NARROW: dict[str, Any] = {"linear taylor, width 16": Linear("L0", "taylor")}
FULL: dict[str, Any] = {
    "agent 49": Agent("L0", 49),
    "linear elu, full": Linear("L0"),
    "prefix scan, one query": PrefixScan("L0", torch.ones(1, 64)),
}
MUST = ("linear elu", "linear exp", "lightning", "inline", "rala", "window 256", "agent 49", "linear elu, full")
"""What has to be faster than SDPA at 16,384 tokens."""


Row = dict[str, Any]


def part(length: int, mask: Mask, width: int, heads: int = 4) -> Part:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, width, generator=g) for _ in range(3))
    return Part(q, k, v, mask, width**-0.5, None, None, None, tuple(range(heads)))


class Times:
    """Seconds that sides took, a line each in a file where one is given."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.taken: dict[tuple[int, str], list[float]] = defaultdict(list)
        for line in file.read_text().splitlines() if file is not None and file.exists() else []:
            one = json.loads(line)
            self.taken[one["length"], one["side"]].append(one["seconds"])

    def turns(self, length: int, sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """The best time of each side over so many rounds; those that were taken earlier are not taken again."""
        for n in range(rounds):
            for name, side in sides.items():
                if len(self.taken[length, name]) <= n:
                    start = time.perf_counter()
                    side()
                    self._add(length, name, time.perf_counter() - start)
        return {name: min(self.taken[length, name]) for name in sides}

    def _add(self, length: int, name: str, seconds: float) -> None:
        self.taken[length, name].append(seconds)
        if self.file is not None:
            with self.file.open("a") as out:
                out.write(json.dumps({"length": length, "side": name, "seconds": seconds}) + "\n")


def predicted(operator: Any, p: Part) -> float | None:
    """Blocks of the causal mask over those of the operator's that are not empty."""
    if not isinstance(operator, Masked):
        return None
    n = p.q.shape[2]
    assert operator.mask is not None
    counts = [int((mask.classes(n, n) != EMPTY).sum()) for mask in (Causal(), Causal() & operator.mask)]
    return counts[0] / counts[1]


def measured(length: int, operators: dict[str, Any], mask: Mask, width: int, times: Times, rounds: int) -> list[Row]:
    """All operators of a mask and width beside SDPA, in turns."""
    p, causal = part(length, mask, width), isinstance(mask, Causal)
    peer = f"sdpa, {'causal' if causal else 'full'}, width {width}"
    sides: dict[str, Callable[[], object]] = {
        peer: lambda: scaled_dot_product_attention(p.q, p.k, p.v, is_causal=causal),
        **{name: partial(operator.z, p) for name, operator in operators.items()},
    }
    taken = times.turns(length, sides, rounds)
    rows = [row(name, operator, p, taken[peer], taken[name]) for name, operator in operators.items()]
    for one in rows:
        print(one, flush=True)
    return rows


def row(name: str, operator: Any, p: Part, sdpa: float, own: float) -> Row:
    length, expected = p.q.shape[2], predicted(operator, p)
    counted = length <= 4096 or not isinstance(operator, Masked)  # counting pairs takes longer than attending
    return {
        "operator": name, "length": length, "sdpa_ms": round(sdpa * 1e3, 1), "operator_ms": round(own * 1e3, 1),
        "speedup": round(sdpa / own, 2), "saving": round(operator.saving(p), 2) if counted else None,
        "predicted": None if expected is None else round(expected, 2),
    }  # fmt: skip


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    given.add_argument("--repeats", type=int, default=3)
    given.add_argument("--out", type=Path, help="a directory: times are kept there, and a run goes on from them")
    args = given.parse_args()
    torch.set_num_threads(1)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    times = Times(None if args.out is None else args.out / "times.jsonl")
    rows: list[Row] = []
    with torch.no_grad():
        for length in args.lengths:
            rows += measured(length, CAUSAL, Causal(), 64, times, args.repeats)
            rows += measured(length, NARROW, Causal(), 16, times, args.repeats)
            rows += measured(length, FULL, Full(), 64, times, args.repeats)
    longest = max(args.lengths)
    slower = [row["operator"] for row in rows
              if row["length"] == longest and row["operator"] in MUST and row["speedup"] <= 1]  # fmt: skip
    print(json.dumps({
        "bench": "operators", "machine": platform.machine(), "threads": 1, "heads": 4, "torch": torch.__version__,
        "speedup": {f"{row['operator']} @ {row['length']}": row["speedup"] for row in rows},
        "predicted": {f"{r['operator']} @ {r['length']}": r["predicted"] for r in rows if r["predicted"]},
        "slower_at_longest": slower,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
