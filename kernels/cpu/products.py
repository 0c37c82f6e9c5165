"""How torch's operators are quickest for attention on a CPU: which product of matrices, and who runs in parallel.

Of torch's two products of float32 matrices, MKL's and oneDNN's, the faster is taken. On AMD processors the default runs
at under half the rate of oneDNN's. The setting that chooses oneDNN also allows products of lower precision where a
processor has fast ones, so a probe must keep the default's error before it is taken. Cost: a few milliseconds, once for
each width of head. And many small operators that each wait for all threads lose to heads that each run on one thread:
by a little on a free machine, twenty times on a busy one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ROWS, KEYS, TRIES, GAIN, WORSE = 256, 1024, 5, 0.9, 4.0
"""Of the probe; oneDNN is taken if its best time is below GAIN of the default's, its error at most WORSE times that."""


@contextmanager
def quicker(q: Tensor) -> Iterator[None]:
    """Products of matrices like q's rows with keys are made the quicker way; the setting is given back."""
    if q.device.type != "cpu" or q.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        yield
        return
    with _setting("bf16" if _onednn(q.shape[-1]) else None):
        yield


@contextmanager
def _setting(value: str | None) -> Iterator[None]:
    here = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = here.fp32_precision
    if value is not None:
        here.fp32_precision = value
    try:
        yield
    finally:
        here.fp32_precision = before


@cache
def _onednn(width: int) -> bool:
    """Whether oneDNN's are quicker on one thread, and as exact."""
    g, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    q, k = torch.randn(ROWS, width, generator=g), torch.randn(KEYS, width, generator=g)
    exact, found = q.double() @ k.double().T, []
    torch.set_num_threads(1)
    try:
        for value in (None, "bf16"):
            with _setting(value):
                error = float((torch.mm(q, k.T).double() - exact).abs().max())
                found.append((min(_seconds(q, k) for _ in range(TRIES)), error))
    finally:
        torch.set_num_threads(threads)
    (slow, error), (fast, other) = found
    return fast < GAIN * slow and other <= WORSE * error


def _seconds(q: Tensor, k: Tensor) -> float:
    """Scores and their product with keys, as attention makes them."""
    start = time.perf_counter()
    torch.mm(torch.mm(q, k.T), k)
    return time.perf_counter() - start


def each_alone(work: Callable[[Sequence[T]], None], items: Sequence[T]) -> None:
    """Work on all items, shared out over torch's threads; inside, operators have one thread each."""
    threads = torch.get_num_threads()
    if min(threads, len(items)) == 1:
        work(items)
        return

    def share(n: int) -> None:
        with torch.no_grad():
            work(items[n::threads])

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(share, range(min(threads, len(items)))))
    finally:
        torch.set_num_threads(threads)
