"""Operators against torch's scaled_dot_product_attention on the same queries, keys and values.

    python experiments/bench/operators.py                          # 4,096 and 16,384 tokens, one JSON line
    python experiments/bench/operators.py --lengths 1024 4096      # other lengths

Sides take turns in one process and the best of each counts, so that a busy machine disturbs all alike. Operators of
causal towers stand against causal attention, those that see all keys (`full`) against attention that does; `saving` is
softmax's multiplications over the operator's own count, `speedup` SDPA's time over the operator's. Beside them, what
the classes of blocks of a mask say it should save: blocks of 128 x 128 of the causal mask over those that are not
empty. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import EMPTY, Causal, Full, Mask, PowerBlocks, Prefix, Window
from interp.operators import Agent, InLine, Linear, Masked, PrefixScan, RankAugmented, slopes

CAUSAL: dict[str, Any] = {
    "linear elu": Linear("L0"),
    "linear exp": Linear("L0", "exp"),
    "linear taylor, width 16": Linear("L0", "taylor"),
    "lightning": Linear("L0", "silu", rate=slopes(4), normalize=False),
    "inline": InLine("L0"),
    "rala": RankAugmented("L0"),
    "window 256": Masked("L0", Window(256)),
    "sinks and window": Masked("L0", Window(256) | Prefix(4)),
    "power blocks": Masked("L0", PowerBlocks(256, 2)),
}
FULL: dict[str, Any] = {
    "agent 49": Agent("L0", 49),
    "linear elu, full": Linear("L0"),
    "prefix scan, one query": PrefixScan("L0", torch.ones(1, 64)),
}
MUST = ("linear elu", "linear exp", "lightning", "inline", "rala", "window 256", "agent 49", "linear elu, full")
"""What has to be faster than SDPA at 16,384 tokens."""


def part(length: int, mask: Mask, width: int, heads: int = 4) -> Part:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, width, generator=g) for _ in range(3))
    return Part(q, k, v, mask, width**-0.5, None, None, None, tuple(range(heads)))


def best(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    taken = {name: float("inf") for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            taken[name] = min(taken[name], time.perf_counter() - start)
    return taken


def predicted(operator: Any, p: Part) -> float | None:
    """Blocks of the causal mask over those of the operator's that are not empty."""
    if not isinstance(operator, Masked):
        return None
    n = p.q.shape[2]
    assert operator.mask is not None
    counts = [int((mask.classes(n, n) != EMPTY).sum()) for mask in (Causal(), Causal() & operator.mask)]
    return counts[0] / counts[1]


def measured(length: int, operators: dict[str, Any], mask: Mask, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, operator in operators.items():
        p = part(length, mask, 16 if "16" in name and "taylor" in name else 64)
        causal = isinstance(mask, Causal)
        sides: dict[str, Callable[[], object]] = {
            "sdpa": lambda p=p, causal=causal: scaled_dot_product_attention(p.q, p.k, p.v, is_causal=causal),
            "operator": lambda p=p, operator=operator: operator.z(p),
        }
        taken = best(sides, repeats)
        expected = predicted(operator, p)
        rows.append({
            "operator": name, "length": length, "sdpa_ms": round(taken["sdpa"] * 1e3, 1),
            "operator_ms": round(taken["operator"] * 1e3, 1), "speedup": round(taken["sdpa"] / taken["operator"], 2),
            "saving": round(operator.saving(p), 2) if length <= 4096 or not isinstance(operator, Masked) else None,
            "predicted": None if expected is None else round(expected, 2),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    given.add_argument("--repeats", type=int, default=3)
    args = given.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for length in args.lengths:
            rows += measured(length, CAUSAL, Causal(), args.repeats)
            rows += measured(length, FULL, Full(), args.repeats)
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
