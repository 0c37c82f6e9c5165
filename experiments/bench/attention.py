"""Attention with every statistic against attention alone, and against the eager pattern that statistics usually need.

    python experiments/bench/attention.py --device cpu --length 4096        # the promise, one JSON line
    python experiments/bench/attention.py --length 32768                    # memory; eager is left out
    python experiments/bench/attention.py --table --length 16384            # masks x lengths, to parquet and a plot

Sides take turns in one process and the best of each counts, so that a busy machine disturbs all alike. Ours compute z,
log-sum-exp, entropy, largest weight, its key and received attention; `sdpa` and `flex` (FlexAttention) compute z only,
`eager` is a dense softmax with the same statistics. `peak_mb` is the growth of resident memory while ours run. Masks
are those of the Long-Context Attention Benchmark (arXiv 2510.17896) that a head may have. What cannot run here (NATTEN
without its kernels, FlexAttention without a compiler, a GPU that is not there) says why in one line and stands as
"not measured" in the results. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interp.kernels.attention import attend
from interp.kernels.masks import symbols as M

STATS = ["lse", "entropy", "max", "argmax", "received"]
RESULTS = Path(__file__).parent / "results"
HEADS, WIDTH = 16, 64
EAGER_UP_TO = 4096
OURS = {"cpu": ("native", "sweep"), "cuda": ("triton",)}
NOT_MEASURED = "not measured"

Sides = dict[str, Callable[[], object]]
Visible = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A mask of ours, and the same as FlexAttention wants it: of positions i and keys j."""

    name: str
    causal: bool
    mask: M.Mask
    sees: Visible


def cases(keys: int) -> list[Case]:
    ids = torch.arange(keys) * 5 // keys
    side, window, prefix = int(keys**0.5), max(1, keys // 16), keys // 4
    found = [
        Case("full", False, M.Full(), lambda i, j: i >= -1),
        Case("causal", True, M.Causal(), lambda i, j: j <= i),
        Case("sliding", False, M.Window(window), lambda i, j: (i - j).abs() < window),
        Case("sliding", True, M.Causal() & M.Window(window), lambda i, j: (j <= i) & (i - j < window)),
        Case("documents", False, M.Documents(ids), lambda i, j: ids[i] == ids[j]),
        Case("documents", True, M.Documents(ids) & M.Causal(), lambda i, j: (ids[i] == ids[j]) & (j <= i)),
        Case("prefix", False, M.Prefix(prefix), lambda i, j: j < prefix),
        Case("prefix", True, M.Causal() | M.Prefix(prefix), lambda i, j: (j <= i) | (j < prefix)),
    ]
    if side * side == keys:
        near = min(side, 13)
        for causal in (False, True):
            mask = M.Neighborhood((side, side), (near, near), causal=causal)
            found.append(Case("neighbourhood", causal, mask, neighbours(side, near, causal)))
    return found


def neighbours(side: int, window: int, causal: bool) -> Visible:
    def axis(a: Tensor, b: Tensor) -> Tensor:
        if causal:
            return (b <= a) & (b > a - window)
        low = (a - window // 2).clamp(0, side - window)
        return (b >= low) & (b < low + window)

    return lambda i, j: axis(i // side, j // side) & axis(i % side, j % side)


def checked(size: int = 36) -> None:
    """Both descriptions of every mask are the same."""
    i = torch.arange(size)
    for case in cases(size):
        same = case.sees(i[:, None], i[None, :]).expand(size, size) == case.mask.dense(size, size)[0, 0]
        assert bool(same.all()), case.name


def inputs(length: int, keys: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = (torch.randn(1, HEADS, n, WIDTH, generator=g).to(device, dtype) for n in (length, keys, keys))
    return q, k, v


def eager(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    s = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~visible, -torch.inf)
    p = s.softmax(-1)
    top, at = p.max(-1)
    return p @ v, s.logsumexp(-1), torch.special.entr(p).sum(-1), top, at, p.sum(2)


def ours(case: Case, x: tuple[Tensor, ...], device: str) -> Sides:
    q, k, v = x
    return {n: partial(attend, q, k, v, mask=case.mask, stats=STATS, impl=n) for n in OURS[device]}


def others(case: Case, x: tuple[Tensor, ...], skip: set[str]) -> Sides:
    """SDPA with the same mask, FlexAttention, eager, NATTEN: those that can run."""
    q, k, v = x
    length, keys = q.shape[2], k.shape[2]
    plain = case.name == "full" or (case.name == "causal" and length == keys)
    given = None if plain else case.mask.dense(length, keys, device=q.device)
    sides: Sides = {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=plain and case.causal)
    }
    if "flex" not in skip:
        sides["flex"] = flex(case, x)
    if "eager" not in skip and max(length, keys) <= EAGER_UP_TO:
        visible = case.mask.dense(length, keys, device=q.device)
        sides["eager"] = lambda: eager(q, k, v, visible)
    if "natten" not in skip and case.name == "neighbourhood":
        sides["natten"] = natten(case, x)
    return sides


def flex(case: Case, x: tuple[Tensor, ...]) -> Callable[[], object]:
    """Compiled anew for each mask: after eight masks in one process the compiler would fall back to eager silently."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    q, k, v = x
    offset = k.shape[2] - q.shape[2]
    mask = create_block_mask(
        lambda b, h, i, j: case.sees(i + offset, j), None, None, q.shape[2], k.shape[2], device=str(q.device)
    )
    compiled: Callable[..., object] = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask)


def natten(case: Case, x: tuple[Tensor, ...]) -> Callable[[], object]:
    from natten import na2d

    assert isinstance(case.mask, M.Neighborhood)
    (rows, columns), window = case.mask.grid, case.mask.window
    q, k, v = (t.transpose(1, 2).unflatten(1, (rows, columns)).contiguous() for t in x)
    return lambda: na2d(q, k, v, kernel_size=window, is_causal=case.causal)


def unavailable(device: str) -> dict[str, str]:
    """Peers that cannot run here, and why."""
    found = {}
    if device == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "c++")):
        found["flex"] = "FlexAttention: no C++ compiler, and uncompiled it is dense"
    if importlib.util.find_spec("natten") is None:
        found["natten"] = "NATTEN: not installed (pip install natten builds for GPUs)"
    elif device == "cpu":
        found["natten"] = "NATTEN: its kernels are for GPUs only since 0.20"
    return found


def seconds(sides: Sides, *, rounds: int, warm: bool = True) -> dict[str, float]:
    """The best time of each side after a run to warm up; sides take turns."""
    for run in sides.values() if warm else ():
        run()
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            start = now()
            run()
            best[name] = min(best[name], now() - start)
    return best


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def headline(length: int, *, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds, and the four ratios of the promise."""
    causal = next(c for c in cases(length) if c.name == "causal")
    x = inputs(length, length, "cpu")
    before = resident_mb()
    sides = ours(causal, x, "cpu")
    for run in sides.values():
        run()
    peak = resident_mb() - before
    skip = {"flex", "natten"} | ({"eager"} if length > 2 * EAGER_UP_TO else set())
    best = seconds({**others(causal, x, skip), **sides}, rounds=rounds, warm=rounds > 1)
    if length <= 2 * EAGER_UP_TO and "eager" not in best:
        visible = causal.mask.dense(length, length)
        best |= seconds({"eager": lambda: eager(*x, visible)}, rounds=rounds)
    dense = best.get("eager")
    return {n: round(1e3 * t, 1) for n, t in best.items()}, {
        "bench": "attention_stats_cpu",
        "native_vs_sdpa": round(best["native"] / best["sdpa"], 3),
        "portable_vs_sdpa": round(best["sweep"] / best["sdpa"], 3),
        "native_vs_eager": None if dense is None else round(dense / best["native"], 2),
        "portable_vs_eager": None if dense is None else round(dense / best["sweep"], 2),
        "peak_mb": round(peak, 1),
    }


def table(lengths: list[int], *, device: str, rounds: int, skip: set[str]) -> Iterator[dict[str, object]]:
    """Every mask, self and cross; a cross call has as many queries as half its keys."""
    for length in lengths:
        for keys in (length, 2 * length):
            x = inputs(length, keys, device)
            for case in cases(keys):
                if case.name == "neighbourhood" and keys != length:
                    continue
                sides = {**ours(case, x, device), **others(case, x, skip)}
                share = float(case.mask.dense(length, keys).float().mean())
                row = {"length": length, "keys": keys, "mask": case.name, "causal": case.causal, "visible": share}
                for impl, best in seconds(sides, rounds=rounds).items():
                    yield {**row, "impl": impl, "ms": 1e3 * best, "note": ""}
                print(f"{length} x {keys} {case.name} causal={case.causal}", file=sys.stderr, flush=True)


def missing(device: str, skip: dict[str, str]) -> Iterator[dict[str, object]]:
    """Rows of what was not measured, so that the table says so itself."""
    for impl, why in skip.items():
        yield {"impl": impl, "note": f"{NOT_MEASURED}: {why}"}
    if device == "cpu" and not torch.cuda.is_available():
        for impl in (*OURS["cuda"], "sdpa", "flex", "natten"):
            yield {"impl": impl, "device": "cuda", "note": f"{NOT_MEASURED}: no GPU here"}


def save(rows: list[dict[str, object]], *, device: str) -> Path:
    frame = pd.DataFrame(rows)
    own = pd.Series(processor() if device == "cpu" else torch.cuda.get_device_name(), index=frame.index)
    frame["device"] = frame["device"].fillna(own) if "device" in frame else own
    frame = frame.assign(date=date.today().isoformat(), threads=torch.get_num_threads(), torch=torch.__version__)
    frame["load"] = os.getloadavg()[0]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"attention_{device}.parquet"
    frame.to_parquet(path, index=False)
    plot(frame.dropna(subset=["ms"]), path.with_suffix(".png"))
    return path


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Time against length, a panel for each mask; self-attention, causal where the mask has both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    own = frame[frame["keys"] == frame["length"]]
    names = list(dict.fromkeys(own["mask"]))
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(11, 6), squeeze=False, sharex=True)
    for axis, name in zip(axes.flat, names, strict=False):
        mine = own[own["mask"] == name]
        mine = mine[mine["causal"] == mine["causal"].max()]
        for impl, line in mine.groupby("impl"):
            axis.plot(line["length"], line["ms"], marker="o", label=impl)
        axis.set(title=name, xscale="log", yscale="log", ylabel="ms")
    axes[0, 0].legend()
    figure.suptitle(
        f"attention, {HEADS} heads of {WIDTH}; native, sweep, triton and eager with statistics, others none"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, help="5; 1 where a call takes many seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip", default="", help="of the table: flex, eager or natten, separated by commas")
    parser.add_argument("--table", action="store_true", help="all masks, lengths up to --length; writes results/")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.length <= 2 * EAGER_UP_TO else 1)
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    checked()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"bench": "attention_stats_cuda", "result": NOT_MEASURED, "why": "no GPU here"}))
        return
    if not args.table and args.device == "cpu":
        times, ratios = headline(args.length, rounds=args.rounds)
        print(json.dumps({"length": args.length, "threads": args.threads, "load": os.getloadavg()[0], "ms": times}))
        print(json.dumps(ratios))
        return
    why = unavailable(args.device)
    for line in why.values():
        print(line)
    skip = set(filter(None, args.skip.split(",")))
    lengths = [n for n in (1024, 4096, 16384, 65536) if n <= args.length]
    rows = list(table(lengths, device=args.device, rounds=args.rounds, skip=skip | set(why)))
    rows += missing(args.device, why | dict.fromkeys(skip, "left out by --skip"))
    path = save(rows, device=args.device)
    print(json.dumps({"bench": f"attention_masks_{args.device}", "rows": len(rows), "path": str(path)}))


if __name__ == "__main__":
    main()
