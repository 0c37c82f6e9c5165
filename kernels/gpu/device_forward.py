# mypy: disable-error-code="no-untyped-def"
"""The Triton forward: an online softmax with running row statistics, split over the keys where rows are few.

Scores are in base 2 inside. Blocks that no row of a tile can see are never touched. Rows that saw nothing are wiped in
the end.
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
    rows_of,
    to_visit,
    unpacked,
)


@triton.jit
@no_type_check
def forward(
    Q, K, V, LOW, HIGH, COUNT, INDEX, PART, BITS, KEEP, BIASES, UP, DOWN, WHICH, TEMPERS, SETS, POSITION,
    Z, LSE, ENTROPY, TOP, AT, DISTANCE, MASS, BEST, BEST_AT,
    heads, group, rows, keys, span, low_batch, table_batch, table_head, most, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    VALUES: tl.constexpr, N_SETS: tl.constexpr, TOPK: tl.constexpr, STATS: tl.constexpr, FAR: tl.constexpr,
    TABLE: tl.constexpr, KEPT: tl.constexpr, CAP: tl.constexpr, TEMPER: tl.constexpr, BIAS: tl.constexpr,
    SLOPE: tl.constexpr, PER_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head against the keys [split * span, ...): all outputs are those of these keys alone."""
    tile, bh, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    b, h = bh // heads, bh % heads
    kv = b * (heads // group) + h // group
    r = tile * BM + tl.arange(0, BM)
    real = r < rows
    d, dv = tl.arange(0, DP), tl.arange(0, DVP)
    q, low, high, temper, which = queries(
        Q, LOW, HIGH, TEMPERS, WHICH, bh, b, r, real, d, rows, keys, low_batch, D, TABLE, TEMPER, PER_ROW
    )
    low, high = tl.maximum(low, split * span), tl.minimum(high, (split + 1) * span)
    place = tl.load(POSITION + r, mask=real, other=0) if FAR else r
    m = tl.full((BM,), HIDDEN, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    warmth = tl.zeros((BM,), tl.float32)
    far = tl.zeros((BM,), tl.float32)
    at = tl.full((BM,), -1, tl.int32)
    z = tl.zeros((BM, DVP), tl.float32)
    mass = tl.zeros((BM, 16), tl.float32)
    best = nothing_yet(BM, TOPK) if TOPK > 0 else 0
    sets = tl.arange(0, 16)
    entries = b * table_batch + h * table_head + tile
    begin, end = to_visit(COUNT, entries, low, high, keys, BN, TABLE)
    for n in range(begin, end):
        start = (tl.load(INDEX + entries * most + n) if TABLE else n) * BN
        j = start + tl.arange(0, BN)
        inside = j < keys
        k = keys_of(K, kv * keys + j, inside, d, D)
        s, _slope, _capped, seen = block(
            q, k, temper, which, low, high, j, b, inside, keys, entries * most + n, scale, softcap, BIASES, UP, DOWN,
            PART, BITS, KEEP, BM, BN, TABLE, KEPT, CAP, TEMPER, BIAS, SLOPE, PER_ROW, PRECISION,
        )  # fmt: skip
        s = tl.where(seen, s * LOG2E, HIDDEN)
        top = tl.max(s, 1)
        new = tl.maximum(m, top)
        if STATS:
            at = tl.where(top > m, start + tl.argmax(s, 1).to(tl.int32), at)
        if TOPK > 0:
            best = best_of(best, s, j, TOPK)
        alpha = tl.exp2(m - new)
        p = tl.where(seen, tl.exp2(s - new[:, None]), 0.0)
        if STATS:
            warmth = alpha * (warmth + total * (m - new)) + tl.sum(p * (s - new[:, None]), 1)
        if FAR:
            far = far * alpha + tl.sum(p * tl.abs(place[:, None] - j[None, :]).to(tl.float32), 1)
        total = total * alpha + tl.sum(p, 1)
        if N_SETS > 0:
            members = tl.load(
                SETS + (sets[None, :] * (tl.num_programs(1) // heads) + b) * keys + j[:, None],
                mask=inside[:, None] & (sets[None, :] < N_SETS), other=0,
            )  # fmt: skip
            mass = mass * alpha[:, None] + tl.dot(p, members.to(tl.float32), input_precision="tf32x3")
        if VALUES:
            v = rows_of(V, kv * keys + j, inside, dv, DV)
            z = z * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m = new
    sees = total > 0
    factor = tl.where(sees, 1.0 / tl.where(sees, total, 1.0), 0.0)
    out = (split * tl.num_programs(1) + bh) * rows + r
    log = tl.log2(tl.where(sees, total, 1.0))
    tl.store(LSE + out, tl.where(sees, (m + log) * LN2, float("-inf")), mask=real)
    if VALUES:
        tl.store(Z + out[:, None] * DV + dv[None, :], z * factor[:, None], mask=real[:, None] & (dv[None, :] < DV))
    if STATS:
        tl.store(ENTROPY + out, tl.where(sees, (log - factor * warmth) * LN2, 0.0), mask=real)
        tl.store(TOP + out, factor, mask=real)
        tl.store(AT + out, tl.where(sees, at, -1), mask=real)
    if FAR:
        tl.store(DISTANCE + out, far * factor, mask=real)
    if N_SETS > 0:
        tl.store(MASS + out[:, None] * 16 + sets[None, :], mass * factor[:, None], mask=real[:, None])
    if TOPK > 0:
        value, key = unpacked(best)
        held = value > HIDDEN / 2
        weight = tl.where(held, tl.exp2(value - m[:, None]) * factor[:, None], 0.0)
        rank = out[:, None] * TOPK + tl.arange(0, TOPK)[None, :]
        tl.store(BEST + rank, weight, mask=real[:, None])
        tl.store(BEST_AT + rank, tl.where(held, key, -1), mask=real[:, None])
