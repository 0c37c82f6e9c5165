# mypy: disable-error-code="no-untyped-def"
"""The Triton sweeps over q k alone, given the log-sum-exp: what keys receive, and statistics of edited weights.

A final weight is p_ij exp(factor_i[cell of j]) + even_i + own_i [j is i's own key]: `factor` holds the sink's share,
what a redistribution does to each cell of keys and what a blend leaves; `even` and `own` are what a blend adds. No
atomics, so the order of every sum is fixed.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from interp.kernels.gpu.device_scores import (
    HIDDEN,
    LN2,
    LOG2E,
    best_of,
    block,
    keys_of,
    nothing_yet,
    queries,
    to_visit,
    unpacked,
)


@triton.jit
@no_type_check
def final(
    s, seen, lse, row, place, j, b, all_rows, inside, keys, FACTOR, CELL, EVEN, OWN, CELLS: tl.constexpr,
    BLEND: tl.constexpr,
):  # fmt: skip
    """The final weights of a block; `row` are rows of [batch, head, row] as a column, or addresses that broadcast."""
    if CELLS:
        cell = tl.load(CELL + b * keys + j, mask=inside, other=0).to(tl.int64)
        factor = tl.load(FACTOR + cell[None, :] * all_rows + row[:, None], mask=seen, other=0.0)
    else:
        factor = tl.load(FACTOR + row, mask=row < all_rows, other=0.0)[:, None]
    p = tl.where(seen, tl.exp2((s + factor) * LOG2E - lse[:, None]), 0.0)
    if BLEND:
        p += tl.where(seen, tl.load(EVEN + row, mask=row < all_rows, other=0.0)[:, None], 0.0)
        own = tl.load(OWN + row, mask=row < all_rows, other=0.0)[:, None]
        p += tl.where(seen & (place[:, None] == j[None, :]), own, 0.0)
    return p


@triton.jit
@no_type_check
def received(
    Q, K, LOW, HIGH, COUNT, INDEX, PART, BITS, KEEP, BIASES, UP, DOWN, WHICH, TEMPERS, POSITION,
    LSE, FACTOR, CELL, EVEN, OWN, RECEIVED, SEEN,
    heads, group, rows, keys, low_batch, table_batch, table_head, most, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CELLS: tl.constexpr, BLEND: tl.constexpr,
    TABLE: tl.constexpr, KEPT: tl.constexpr, CAP: tl.constexpr, TEMPER: tl.constexpr, BIAS: tl.constexpr,
    SLOPE: tl.constexpr, PER_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Column sums of a tile of keys of one head over all rows, and how many rows see each key.

    COUNT and INDEX are as in `keys_gradient`.
    """
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    kv = b * (heads // group) + h // group
    j = tile * BN + tl.arange(0, BN)
    inside = j < keys
    d = tl.arange(0, DP)
    k = keys_of(K, kv * keys + j, inside, d, D)
    total = tl.zeros((BN,), tl.float32)
    count = tl.zeros((BN,), tl.int32)
    entries = b * table_batch + h * table_head + tile
    begin = 0 if TABLE else tl.load(INDEX + entries)
    for n in range(begin, tl.load(COUNT + entries)):
        r = (tl.load(INDEX + entries * most + n) if TABLE else n) * BM + tl.arange(0, BM)
        real = r < rows
        row = bh * rows + r
        q, low, high, temper, which = queries(
            Q, LOW, HIGH, TEMPERS, WHICH, bh, b, r, real, d, rows, keys, low_batch, D, TABLE, TEMPER, PER_ROW
        )
        lse = tl.load(LSE + row, mask=real, other=0.0) * LOG2E
        place = tl.load(POSITION + r, mask=real, other=0) if BLEND else r
        s, _slope, _capped, seen = block(
            q, k, temper, which, low, high, j, b, inside, keys, entries * most + n, scale, softcap, BIASES, UP, DOWN,
            PART, BITS, KEEP, BM, BN, TABLE, KEPT, CAP, TEMPER, BIAS, SLOPE, PER_ROW, PRECISION,
        )  # fmt: skip
        p = final(
            s, seen, lse, row, place, j, b, tl.num_programs(1) * rows, inside, keys, FACTOR, CELL, EVEN, OWN, CELLS,
            BLEND,
        )  # fmt: skip
        total += tl.sum(p, 0)
        count += tl.sum(seen.to(tl.int32), 0)
    tl.store(RECEIVED + bh * keys + j, total, mask=inside)
    tl.store(SEEN + bh * keys + j, count, mask=inside)


@triton.jit
@no_type_check
def ranked(
    Q, K, LOW, HIGH, COUNT, INDEX, PART, BITS, KEEP, BIASES, UP, DOWN, WHICH, TEMPERS, POSITION,
    LSE, FACTOR, CELL, EVEN, OWN, ENTROPY, BEST, BEST_AT,
    heads, group, rows, keys, low_batch, table_batch, table_head, most, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TOPK: tl.constexpr, CELLS: tl.constexpr,
    BLEND: tl.constexpr, TABLE: tl.constexpr, KEPT: tl.constexpr, CAP: tl.constexpr, TEMPER: tl.constexpr,
    BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Entropy and the largest final weights of a tile of rows: what a blend changes in no simple way."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    kv = b * (heads // group) + h // group
    r = tile * BM + tl.arange(0, BM)
    real = r < rows
    row = bh * rows + r
    d = tl.arange(0, DP)
    q, low, high, temper, which = queries(
        Q, LOW, HIGH, TEMPERS, WHICH, bh, b, r, real, d, rows, keys, low_batch, D, TABLE, TEMPER, PER_ROW
    )
    lse = tl.load(LSE + row, mask=real, other=0.0) * LOG2E
    place = tl.load(POSITION + r, mask=real, other=0)
    warmth = tl.zeros((BM,), tl.float32)
    best = nothing_yet(BM, TOPK)
    entries = b * table_batch + h * table_head + tile
    begin, end = to_visit(COUNT, entries, low, high, keys, BN, TABLE)
    for n in range(begin, end):
        j = (tl.load(INDEX + entries * most + n) if TABLE else n) * BN + tl.arange(0, BN)
        inside = j < keys
        k = keys_of(K, kv * keys + j, inside, d, D)
        s, _slope, _capped, seen = block(
            q, k, temper, which, low, high, j, b, inside, keys, entries * most + n, scale, softcap, BIASES, UP, DOWN,
            PART, BITS, KEEP, BM, BN, TABLE, KEPT, CAP, TEMPER, BIAS, SLOPE, PER_ROW, PRECISION,
        )  # fmt: skip
        p = final(
            s, seen, lse, row, place, j, b, tl.num_programs(1) * rows, inside, keys, FACTOR, CELL, EVEN, OWN, CELLS,
            BLEND,
        )  # fmt: skip
        warmth += tl.sum(p * tl.log2(tl.where(p > 0, p, 1.0)), 1)
        best = best_of(best, tl.where(seen, p, HIDDEN), j, TOPK)
    value, key = unpacked(best)
    held = value > HIDDEN / 2
    rank = row[:, None] * TOPK + tl.arange(0, TOPK)[None, :]
    tl.store(ENTROPY + row, -warmth * LN2, mask=real)
    tl.store(BEST + rank, tl.where(held, value, 0.0), mask=real[:, None])
    tl.store(BEST_AT + rank, tl.where(held, key, -1), mask=real[:, None])
