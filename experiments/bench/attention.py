"""Attention with every statistic against attention alone, and against the eager pattern that the statistics usually
need.

    python experiments/bench/attention.py --device cpu --length 4096
    python experiments/bench/attention.py --length 32768 --skip-eager
    python experiments/bench/attention.py --table            # masks x lengths, to parquet and a plot

Sides take turns in one process and the best of each counts, so that a busy machine disturbs all alike. `peak_mb` is the
growth of resident memory of our slowest-growing side over the inputs. Eager is torch's dense softmax with the same
statistics taken from the pattern. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interp.kernels import masks as M
from interp.kernels.attention import attend

STATS = ["lse", "entropy", "max", "argmax", "received"]
RESULTS = Path(__file__).parent / "results"
HEADS, WIDTH = 16, 64


def inputs(length: int, keys: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = (length, keys or length, keys or length)
    q, k, v = (torch.randn(1, HEADS, n, WIDTH, generator=g) for n in sizes)
    return q, k, v


def eager(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    s = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~visible, -torch.inf)
    p = s.softmax(-1)
    top, at = p.max(-1)
    return p @ v, s.logsumexp(-1), torch.special.entr(p).sum(-1), top, at, p.sum(2)


def seconds(sides: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The best time of each side; sides take turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def masks(length: int) -> dict[str, M.Mask]:
    """Those of the Long-Context Attention Benchmark that a head may have."""
    ids = (torch.arange(length) * 5 // length).sort().values
    side = int(length**0.5)
    grid = {"neighbourhood": M.Neighborhood((side, side), (min(side, 13),) * 2)} if side * side == length else {}
    return {
        "full": M.Full(),
        "causal": M.Causal(),
        "sliding": M.Causal() & M.Window(max(1, length // 16)),
        "documents": M.Documents(ids) & M.Causal(),
        "prefix": M.Causal() | M.Prefix(length // 4),
        **grid,
    }


def headline(length: int, *, rounds: int, skip_eager: bool) -> dict[str, float | str | None]:
    """The four ratios of the promise."""
    q, k, v = inputs(length)
    before = resident_mb()
    ours = {n: lambda n=n: attend(q, k, v, mask=M.Causal(), stats=STATS, impl=n) for n in ("native", "sweep")}
    for run in ours.values():
        run()
    peak = resident_mb() - before
    sides = {"sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True), **ours}
    if not skip_eager:
        visible = M.Causal().dense(length, length)
        sides["eager"] = lambda: eager(q, k, v, visible)
    best = seconds(sides, rounds=rounds)
    dense = best.get("eager")
    return {
        "bench": "attention_stats_cpu",
        "native_vs_sdpa": round(best["native"] / best["sdpa"], 3),
        "portable_vs_sdpa": round(best["sweep"] / best["sdpa"], 3),
        "native_vs_eager": None if dense is None else round(dense / best["native"], 2),
        "portable_vs_eager": None if dense is None else round(dense / best["sweep"], 2),
        "peak_mb": round(peak, 1),
        "length": length,
        **{f"{n}_ms": round(1e3 * t, 1) for n, t in best.items()},
    }


def table(lengths: list[int], *, rounds: int) -> Iterator[dict[str, object]]:
    """Every mask, self and cross, against SDPA with the same mask."""
    for length in lengths:
        for keys in (length, 2 * length):
            for name, mask in masks(keys).items():
                if name == "neighbourhood" and keys != length:
                    continue
                q, k, v = inputs(length, keys)
                sides: dict[str, Callable[[], object]] = {
                    n: lambda n=n, m=mask, x=(q, k, v): attend(*x, mask=m, stats=STATS, impl=n)
                    for n in ("native", "sweep")
                }
                given = None if name == "full" else mask.dense(length, keys)
                sides["sdpa"] = lambda x=(q, k, v), m=given: scaled_dot_product_attention(*x, attn_mask=m)
                if name == "causal" and keys == length:
                    sides["sdpa"] = lambda x=(q, k, v): scaled_dot_product_attention(*x, is_causal=True)
                for impl, best in seconds(sides, rounds=rounds).items():
                    yield {"length": length, "keys": keys, "mask": name, "impl": impl, "ms": 1e3 * best}


def save(rows: list[dict[str, object]], name: str) -> Path:
    frame = pd.DataFrame(rows).assign(date=date.today().isoformat(), device=device(), threads=torch.get_num_threads())
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.parquet"
    frame.to_parquet(path, index=False)
    plot(frame, path.with_suffix(".png"))
    return path


def device() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def plot(frame: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    own = frame[(frame["keys"] == frame["length"]) & (frame["length"] == frame["length"].max())]
    wide = own.pivot_table(index="mask", columns="impl", values="ms")
    axis = wide.plot.bar(figsize=(8, 4), rot=0)
    axis.set_ylabel("ms")
    axis.set_title(
        f"attention at {int(frame['length'].max())} tokens; ours with {len(STATS)} statistics, sdpa with none"
    )
    plt.tight_layout()
    plt.savefig(path, dpi=120)
    plt.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-eager", action="store_true", help="eager needs several N x N tensors per head")
    parser.add_argument("--table", action="store_true", help="all masks, lengths up to --length; writes results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    if args.table:
        lengths = [n for n in (1024, 4096, 16384) if n <= args.length]
        rows = list(table(lengths, rounds=args.rounds))
        print(json.dumps({"bench": "attention_masks_cpu", "rows": len(rows), "path": str(save(rows, "attention_cpu"))}))
        return
    skip = args.skip_eager or args.length > 8192
    print(json.dumps(headline(args.length, rounds=args.rounds, skip_eager=skip)))


if __name__ == "__main__":
    main()
