"""How much a block-sparse kernel can gain from a neighbourhood mask: counted from blocks, and measured beside it.

    python experiments/bench/neighborhood_model.py --side 48 --window 13

A kernel that skips empty blocks does (partial + full) blocks of work where dense attention does all. How many blocks
are empty depends on the order of the tokens: in row-major order a block of keys is a strip of the image, which nearly
every window touches; with tokens permuted so that a block is a square patch, the bound nears the ratio of sizes
(Generalized Neighborhood Attention, arXiv 2504.16922, makes the same point with its simulator). Predicted is the ratio
of blocks; measured is `native` with the full mask over `native` with only the rows' reach computed, which skips whole
strips at row-block granularity alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from interp.kernels.attention import attend
from interp.kernels.masks import symbols as M


def patches(side: int, patch: int) -> Tensor:
    """The order of tokens in which every patch x patch square is contiguous."""
    at = torch.arange(side * side)
    row, column = at // side, at % side
    per_row = -(-side // patch)
    key = (row // patch * per_row + column // patch) * patch * patch + row % patch * patch + column % patch
    return key.argsort()


def busy(visible: Tensor, block: int) -> float:
    """The share of blocks in which anything is visible."""
    n = len(visible) // block * block
    tiles = visible[:n, :n].view(n // block, block, n // block, block)
    return float(tiles.any(3).any(1).float().mean())


def milliseconds(run: Callable[[], object], rounds: int = 3) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--window", type=int, default=13)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--patch", type=int, default=8)
    args = parser.parse_args()
    n, block = args.side**2, args.patch**2
    mask = M.Neighborhood((args.side, args.side), (args.window,) * 2, (args.stride,) * 2)
    visible = mask.dense(n, n)[0, 0]
    order = patches(args.side, args.patch)
    strip = M.Window((args.window + args.stride) * args.side)
    q, k, v = (torch.randn(1, 4, n, 64) for _ in range(3))
    full = milliseconds(lambda: attend(q, k, v, impl="native"))
    print(
        json.dumps(
            {
                "bench": "neighborhood_model",
                "tokens": n,
                "bound": round(n / args.window**2, 2),
                "predicted_row_major": round(1 / busy(visible, block), 2),
                "predicted_patches": round(1 / busy(visible[order][:, order], block), 2),
                "predicted_strip": round(1 / float(strip.dense(n, n).float().mean()), 2),
                "measured_strip": round(full / milliseconds(lambda: attend(q, k, v, mask=strip, impl="native")), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
