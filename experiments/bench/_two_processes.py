"""One causal attention over two processes: torch's context parallel where it can, and our statistics in its place.

Both are run by `experiments/bench/masks.py`. A process holds two of four chunks of the text, the first and the last or
the two in the middle, so that both have as many pairs of query and key. Ours gathers keys and values, attends from each
own chunk of queries to each chunk of keys that it sees, and joins these by their log-sum-exp:

    O = sum_c exp(lse_c - lse) O_c,      lse = log sum_c exp(lse_c)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.multiprocessing.spawn import spawn

from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Causal

WORLD, CHUNKS = 2, 4
Made = Callable[[], list[Tensor]]


def over_two(made: Made, repeats: int) -> dict[str, Any]:
    """Seconds of one process and of two, how far their z are from torch's, and what context parallel said. `made` gives
    q, k and v, the same in every process."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (folder, made, repeats), nprocs=WORLD)
        return torch.load(Path(folder) / "found.pt", weights_only=True)


def _process(rank: int, folder: str, made: Made, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    with torch.no_grad():
        found = _measured(rank, made(), repeats)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def _measured(rank: int, x: list[Tensor], repeats: int) -> dict[str, Any]:
    own = [torch.cat([y.chunk(CHUNKS, 2)[n] for n in _own(rank)], 2) for y in x]
    q, k, v = x
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mine = torch.cat([want.chunk(CHUNKS, 2)[n] for n in _own(rank)], 2)
    gap = torch.tensor(float((_ours(rank, *own) - mine).abs().max()))
    dist.all_reduce(gap, dist.ReduceOp.MAX)
    taken = {"one": float("inf"), "two": float("inf")}
    for _ in range(repeats):
        for name, side in {"one": lambda: _alone(rank, x), "two": lambda: _ours(rank, *own)}.items():
            dist.barrier()
            start = time.perf_counter()
            side()
            dist.barrier()
            taken[name] = min(taken[name], time.perf_counter() - start)
    return {"seconds": taken, "gap": float(gap), "context_parallel": _torchs(x, want)}


def _own(rank: int) -> tuple[int, int]:
    """The chunks that a process holds."""
    return rank, CHUNKS - 1 - rank


def _alone(rank: int, x: list[Tensor]) -> None:
    """All of it in the first process, while the other one waits."""
    if rank == 0:
        attend(*x, mask=Causal())


def _ours(rank: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """z of a process' own queries."""
    chunks: dict[int, tuple[Tensor, Tensor]] = {}
    both = torch.stack([k, v])
    every = [torch.empty_like(both) for _ in range(WORLD)]
    dist.all_gather(every, both)
    for other, one in enumerate(every):
        for n, part in zip(_own(other), one.chunk(2, 3), strict=True):
            chunks[n] = (part[0], part[1])
    return torch.cat([_joined(n, part, chunks) for n, part in zip(_own(rank), q.chunk(2, 2), strict=True)], 2)


def _joined(n: int, q: Tensor, chunks: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    parts = [attend(q, *chunks[m], mask=Causal() if m == n else None) for m in range(n + 1)]
    lse = torch.stack([part.lse for part in parts])
    shares = torch.exp(lse - lse.logsumexp(0))[..., None]
    return torch.stack([share * part.z for share, part in zip(shares, parts, strict=True)]).sum(0)


def _torchs(x: list[Tensor], want: Tensor) -> str:
    """How far torch's own context parallel is from its attention, or why it refuses."""
    mesh = init_device_mesh("cpu", (WORLD,))
    q, k, v = (y.clone() for y in x)
    try:
        with context_parallel(mesh, buffers=[q, k, v, want], buffer_seq_dims=[2] * 4):
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return f"gap {float((z - want).abs().max()):.1e}"
    except NotImplementedError as error:
        return f"refused: {error}"
