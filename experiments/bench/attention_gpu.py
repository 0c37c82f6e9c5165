"""Attention on a GPU against the kernels it stands beside: the table of what the design promises, with its roofline.

    python experiments/bench/attention_gpu.py          # on a GPU machine: writes results/attention_gpu.md
    python experiments/bench/attention_gpu.py --dry    # anywhere: every side once, tiny, interpreted; measures nothing

bf16, causal, 64 query heads on 8 kv heads of 128. Sides of a length take turns, the cache is flushed before each run,
the median counts. The roofline is the longer of the operations at the device's dense rate and of the bytes that must
move at its memory's rate; operations count visible pairs only (4 d per pair and head forward, 10 d backward, 2 d for a
pass over q k alone). Where there is no GPU the table says "not measured". The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "attention_gpu.md"
COMMAND = "python experiments/bench/attention_gpu.py"
NOT_MEASURED = "not measured"
ROW = ["entropy", "max", "argmax"]
EVERY = [*ROW, "topk:8", "distance", "first", "mass:start", "received", "received_mean"]
KNOWN_LSE = [*ROW, "received"]
# Dense bf16 operations and bytes per second, from the vendor's data sheets.
RATES = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


@dataclass(frozen=True)
class Shape:
    """q heads on kv heads of `width`, a row for each key unless `rows` says fewer."""

    keys: int
    rows: int
    heads: int = 64
    kv: int = 8
    width: int = 128
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    @property
    def pairs(self) -> float:
        return self.heads * (self.keys * (self.keys + 1) / 2 if self.rows > 1 else self.keys)

    @property
    def bytes(self) -> float:
        each = torch.finfo(self.dtype).bits // 8
        return each * self.width * (2 * self.kv * self.keys + 2 * self.heads * self.rows)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator(self.device).manual_seed(0)
        sizes = ((self.heads, self.rows), (self.kv, self.keys), (self.kv, self.keys))
        q, k, v = (
            torch.randn(1, h, n, self.width, generator=g, device=self.device, dtype=self.dtype) for h, n in sizes
        )
        return q, k, v


@dataclass(frozen=True)
class Line:
    """One row of the table: d-multiples of operations per visible pair, and what runs it, or why nothing does."""

    name: str
    shape: Shape
    per_pair: int
    run: Callable[[], object] | None
    why: str = ""
    ms: float | None = None
    peak_mb: float | None = None

    @property
    def operations(self) -> float:
        return self.per_pair * self.shape.width * self.shape.pairs

    def roofline_ms(self, device: str) -> float | None:
        found = next((r for n, r in RATES.items() if n in device), None)
        return None if found is None else 1e3 * max(self.operations / found[0], self.shape.bytes / found[1])


def attended(
    shape: Shape, x: tuple[Tensor, ...], stats: list[str], impl: str
) -> tuple[Callable[[], object] | None, str]:
    """One of our implementations, or why it cannot."""
    from interp.kernels.attention import attend, explain
    from interp.kernels.masks.symbols import Causal

    q, k, v = x
    arguments: dict[str, Any] = {"mask": Causal(), "stats": stats, "impl": impl}
    arguments["key_sets"] = {"start": torch.arange(shape.keys, device=shape.device) < 4}
    why = explain(q, k, v, **arguments)[impl]
    return (None, why) if why != "taken" else ((lambda: attend(q, k, v, **arguments)), "")


def peers(shape: Shape, x: tuple[Tensor, ...]) -> dict[str, tuple[Callable[[], object] | None, str]]:
    """torch's FlashAttention and cuDNN, each with its log-sum-exp."""
    if shape.device != "cuda":
        return dict.fromkeys(("flash", "cudnn"), (None, "needs a GPU"))
    q, (k, v) = x[0], (t.repeat_interleave(shape.heads // shape.kv, 1) for t in x[1:])
    aten = torch.ops.aten
    return {
        "flash": (lambda: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True), ""),
        "cudnn": (lambda: aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True), ""),
    }


def beside_cudnn(shape: Shape, x: tuple[Tensor, ...]) -> tuple[Callable[[], object] | None, str]:
    """cuDNN's forward, and our sweeps from its log-sum-exp; without it, from that of our own forward."""
    from interp.kernels.attention import attend
    from interp.kernels.masks.symbols import Causal

    q, k, v = x
    forward = peers(shape, x)["cudnn"][0]

    def run() -> object:
        if forward is None:
            lse = attend(q, k, v, mask=Causal(), impl="triton").lse
        else:
            lse = forward()[1].reshape(1, shape.heads, -1).float()  # type: ignore[index]
        return attend(q, k, None, mask=Causal(), stats=KNOWN_LSE, lse=lse, impl="triton")

    return run, ""


def backward(shape: Shape, x: tuple[Tensor, ...], impl: str) -> tuple[Callable[[], object] | None, str]:
    """Forward and backward of z."""
    from interp.kernels.attention import attend
    from interp.kernels.masks.symbols import Causal

    leaves = [t.detach().requires_grad_() for t in x]
    if impl == "flash" and shape.device != "cuda":
        return None, "needs a GPU"

    def run() -> object:
        q, k, v = leaves
        with torch.enable_grad():
            if impl == "triton":
                z = attend(q, k, v, mask=Causal(), impl="triton").z
            else:
                wide = [t.repeat_interleave(shape.heads // shape.kv, 1) for t in (k, v)]
                z = torch.ops.aten._scaled_dot_product_flash_attention(q, *wide, 0.0, True)[0]
            assert z is not None
            return torch.autograd.grad(z, leaves, torch.ones_like(z))

    return run, ""


def lines(shape: Shape) -> list[Line]:
    """Everything that is compared at one length; a decoding step has one row."""
    x = shape.tensors()
    if shape.rows == 1:
        decode = attended(shape, x, ["argmax", "topk:8", "mass:start"], "triton")
        return [Line("one-row decode with argmax, top 8 and a mass", shape, 4, *decode)]
    beside = peers(shape, x)
    return [
        Line("flash", shape, 4, *beside["flash"]),
        Line("cudnn", shape, 4, *beside["cudnn"]),
        Line("merge, no statistics", shape, 4, *attended(shape, x, [], "merge")),
        Line("fused, no statistics", shape, 4, *attended(shape, x, [], "triton")),
        Line("fused, row statistics", shape, 4, *attended(shape, x, ROW, "triton")),
        Line("fused, all statistics", shape, 6, *attended(shape, x, EVERY, "triton")),
        Line("cudnn, then sweeps for statistics", shape, 8, *beside_cudnn(shape, x)),
        Line("flash, forward and backward", shape, 14, *backward(shape, x, "flash")),
        Line("fused, forward and backward", shape, 14, *backward(shape, x, "triton")),
    ]


def measured(given: list[Line], *, rounds: int) -> list[Line]:
    """Medians in milliseconds and the largest growth of memory; sides take turns."""
    on_gpu = torch.cuda.is_available()
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda") if on_gpu else None
    times: dict[str, list[float]] = {x.name: [] for x in given}
    peaks: dict[str, float] = {}
    for n in range(rounds + 1):
        for line in given:
            if line.run is None:
                continue
            if flush is None:
                line.run()
                continue
            flush.zero_()
            ms, peaks[line.name] = timed(line.run)
            if n > 0:
                times[line.name].append(ms)
    return [
        replace(x, ms=statistics.median(times[x.name]) if times[x.name] else None, peak_mb=peaks.get(x.name))
        for x in given
    ]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), (torch.cuda.max_memory_allocated() - before) / 2**20


def written(found: list[Line], device: str, command: str) -> str:
    """The table as Markdown."""
    text = [
        "# Attention on a GPU",
        "",
        f"date {date.today().isoformat()}, device {device}, torch {torch.__version__}, command `{command}`",
        "",
        "| side | rows x keys | ms | roofline ms | TFLOP/s | TB/s | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in found:
        roofline = x.roofline_ms(device)
        cells = [x.name, f"{x.shape.rows} x {x.shape.keys}", number(x.ms, x.why), number(roofline, "unknown device")]
        cells += [number(None if x.ms is None else a / x.ms / 1e9, "") for a in (x.operations, x.shape.bytes)]
        text.append("| " + " | ".join([*cells, number(x.peak_mb, "")]) + " |")
    return "\n".join(text) + "\n"


def number(value: float | None, why: str) -> str:
    return f"{value:.3g}" if value is not None else NOT_MEASURED + (f": {why}" if why else "")


def promises(found: list[Line], device: str) -> dict[str, object]:
    """The ratios of the design at the longest length that all sides ran, None where a side is missing."""

    def at(name: str) -> Line | None:
        mine = [x for x in found if x.name == name and x.ms is not None]
        return max(mine, key=lambda x: x.shape.keys, default=None)

    def ratio(a: str, b: str) -> float | None:
        mine, other = at(a), at(b)
        return (
            None if not mine or not other or mine.shape != other.shape else round((mine.ms or 0) / (other.ms or 1), 3)
        )

    fused, decode = at("fused, no statistics"), at("one-row decode with argmax, top 8 and a mass")
    bound = decode.roofline_ms(device) if decode else None
    return {
        "bench": "attention_gpu", "device": device,
        "merge_vs_flash": ratio("merge, no statistics", "flash"),
        "all_statistics_vs_cudnn": ratio("fused, all statistics", "cudnn"),
        "cudnn_and_sweeps_vs_cudnn": ratio("cudnn, then sweeps for statistics", "cudnn"),
        "fused_tflops": None if not fused or not fused.ms else round(fused.operations / fused.ms / 1e9, 1),
        "row_statistics_vs_none": ratio("fused, row statistics", "fused, no statistics"),
        "backward_vs_flash": ratio("fused, forward and backward", "flash, forward and backward"),
        "decode_vs_roofline": None if not bound or not decode else round((decode.ms or 0) / bound, 2),
    }  # fmt: skip


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--decode", type=int, default=131072, help="keys of the decoding step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="run every side once at tiny sizes in Triton's interpreter")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(given)
    torch.set_grad_enabled(False)
    shapes = [Shape(n, n) for n in args.lengths] + [Shape(args.decode, 1)]
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
        small: dict[str, Any] = {"heads": 2, "kv": 1, "width": 16, "device": "cpu", "dtype": torch.float32}
        found = [x for s in (Shape(40, 40, **small), Shape(200, 1, **small)) for x in measured(lines(s), rounds=0)]
        print(written(found, "dry run, nothing measured", "--dry"))
    elif torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        found = [x for s in shapes for x in measured(lines(s), rounds=args.rounds)]
        args.out.write_text(written(found, device, COMMAND))
        print(json.dumps(promises(found, device)))
        return
    else:
        text = f"H200, {date.today().isoformat()}: {NOT_MEASURED}, for want of a GPU. To measure: `{COMMAND}`\n"
        print(text)
        if not args.out.exists():
            args.out.write_text(text)
    print(json.dumps({"bench": "attention_gpu", "result": NOT_MEASURED}))


if __name__ == "__main__":
    main()
