"""What it costs to have the cells of a sweep done by others: python experiments/bench/scale.py   (needs interp[dist])

Ray is started here once, and its workers for each measurement; the first cells wait until all workers are there, and
what is timed begins after them. All sides are measured in turn, round after round, and medians are compared.

ray_overhead: milliseconds of a cell that a worker computes, one cell a chunk, where there is hardly anything to
compute, less those of the same cell in this process.
speedup_2: how much faster two workers of one thread are than one, on cells of 0.1 s of matrix products.
speedup_2_bare: the same for two plain processes without anybody who hands out cells: what this machine has to give.
corpus_mb_per_gb: how much more memory a pass over a corpus takes for each gigabyte that the corpus is longer, from the
peaks of two processes that read one of --megabytes and one ten times as long.

Both need a machine that is idle: two workers and the caller share its processors. `load` is what else it was doing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _corpus_memory import mb_per_gb
from torch import Tensor, nn

import interp
from interp.cells.work import Builder, chunks
from interp.scale import Ray


@dataclass(frozen=True)
class Products:
    """Cells that are so many matrix products each."""

    model: Any
    count: int
    each: int
    gate: str = ""
    """A directory where every worker leaves its name, and goes on once `workers` are there."""
    workers: int = 0
    product: str = "torch"

    @property
    def task(self) -> Mapping[str, Any]:
        return {"method": "products", "count": self.count, "each": self.each}

    @property
    def names(self) -> Mapping[str, int]:
        return {"sum": 1}

    @property
    def recipe(self) -> Builder:
        return Builder("scale:products", {name: getattr(self, name) for name in ("count", "each", "gate", "workers")})

    def bounds(self) -> list[tuple[int, int]]:
        return [(n, n + 1) for n in range(self.count)]

    def compute(self, low: int, high: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        if self.gate:
            (Path(self.gate) / str(os.getpid())).touch()
            while len(os.listdir(self.gate)) < self.workers:
                time.sleep(0.01)
        weight = self.model.module.weight
        with torch.no_grad():
            rows = torch.full((512, 512), float(low % 7))
            for _ in range(self.each):
                rows = (rows @ weight).tanh()
        return {"sum": rows.sum().double().view(1, 1)}, {"sum": 0.0}


def products(model: Any, **how: Any) -> Products:
    return Products(model, **how)


def seconds(work: Products, workers: int) -> float:
    """Of a cell, from when every worker has begun; 0 workers are this process."""
    engine = Ray(workers=workers, bar=False) if workers else None
    before = max(1, 2 * workers)
    with tempfile.TemporaryDirectory() as gate:
        walk = chunks(replace(work, gate=gate, workers=workers) if workers else work, engine=engine)
        for _ in range(before):
            next(walk)
        start = time.perf_counter()
        left = sum(1 for _ in walk)
        return (time.perf_counter() - start) / left


def plain(pipe: Connection, each: int) -> None:
    """A process that does as many cells as it is told, and says when it is done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = Products(interp.attach(nn.Linear(512, 512).eval()), 1, each)
    while cells := pipe.recv():
        for n in range(cells):
            work.compute(n, n + 1)
        pipe.send(cells)


def together(pipes: Sequence[Connection], cells: int) -> float:
    """Seconds of a cell where these processes share them."""
    start = time.perf_counter()
    for pipe in pipes:
        pipe.send(cells // len(pipes))
    for pipe in pipes:
        pipe.recv()
    return (time.perf_counter() - start) / cells


def main(argv: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--cells", type=int, default=60, help="of the sweep that two workers share")
    asked.add_argument("--megabytes", type=int, default=20, help="of the shorter corpus")
    options = asked.parse_args(argv)
    try:
        import ray
    except ImportError:
        sys.exit("Ray is not installed: pip install 'interp[dist]'")
    torch.set_num_threads(1)
    path = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    nice = {"RAY_worker_niceness": str(os.nice(0))}  # Ray's own is 15, which is no comparison with this process
    os.environ.update(PYTHONPATH=path, RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1", **nice)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    torch.manual_seed(0)
    model = interp.attach(nn.Linear(512, 512).eval())
    start = time.perf_counter()
    Products(model, 1, 20).compute(0, 1)
    each = max(1, round(0.1 / ((time.perf_counter() - start) / 20)))
    light, heavy = Products(model, 200, 0), Products(model, options.cells, each)
    took: dict[str, list[float]] = {name: [] for name in ("here", "ray", "one", "two", "bare one", "bare two")}
    spawned, pipes = get_context("spawn"), []
    for _ in range(2):
        mine, yours = spawned.Pipe()
        spawned.Process(target=plain, args=(yours, each), daemon=True).start()
        pipes.append(mine)
        together([mine], 1)
    for turn in range(options.rounds):
        took["here"].append(seconds(light, 0))
        took["ray"].append(seconds(light, 1))
        took["one"].append(seconds(heavy, 1))
        took["two"].append(seconds(heavy, 2))
        took["bare one"].append(together(pipes[:1], options.cells))
        took["bare two"].append(together(pipes, options.cells))
        said = {name: f"{1000 * times[-1]:.2f}" for name, times in took.items()}
        print(f"round {turn + 1}: ms a cell {said}, load {os.getloadavg()[0]:.1f}", flush=True)
    ray.shutdown()
    for pipe in pipes:
        pipe.send(0)
    middle = {name: statistics.median(times) for name, times in took.items()}
    faster = {
        name: statistics.median(one / two for one, two in zip(took[f"{name}one"], took[f"{name}two"], strict=True))
        for name in ("", "bare ")
    }
    found = {
        "bench": "scale",
        "ray_overhead": round(1000 * (middle["ray"] - middle["here"]), 3),
        "speedup_2": round(faster[""], 2),
        "speedup_2_bare": round(faster["bare "], 2),
        "corpus_mb_per_gb": round(mb_per_gb(options.megabytes)[0], 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
