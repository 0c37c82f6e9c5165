"""How fast this machine multiplies matrices of float32: what floors are counted with."""

from __future__ import annotations

import time

import torch

from interp.hooks.drive.faster import DEFAULT, ONEDNN, exact, products


def best_rate(rows: int, width: int, inner: int, *, times: int) -> float:
    """Operations a second, multiply-adds counted as two, of [rows, width] by [width, inner]: the best that any of
    torch's products reached, of those that keep the precision of the default.
    """
    a, b, best = torch.randn(rows, width), torch.randn(width, inner), 0.0
    for name in (n for n in (DEFAULT, ONEDNN) if exact(n, width)):
        with products(name):
            for _ in range(times):
                start = time.perf_counter()
                _ = a @ b
                best = max(best, 2 * rows * width * inner / (time.perf_counter() - start))
    return best
