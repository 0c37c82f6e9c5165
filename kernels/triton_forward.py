# mypy: disable-error-code="no-untyped-def"
"""The Triton kernels: a forward with running row statistics, split over keys where rows are few, and a key-major sweep.

Import this only through `fused`, which decides about the interpreter first. Scores are in base 2 inside. A row sees one
run of keys, [low, high), read from two arrays, so blocks that no row of a tile can see are never touched. Hidden scores
are a finite large negative number, so that weight times score is 0 and not NaN; rows that saw nothing are wiped in the
end.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def _scores(
    q, k, i_low, i_high, j, bias, scale, softcap, CAP: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr
):
    """Scores in base 2, and which of them count."""
    s = tl.dot(q, k.to(q.dtype), input_precision=PRECISION) * scale
    if CAP:
        x = s / softcap
        e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
        s = softcap * tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    if BIAS:
        s += bias[None, :]
    seen = (j[None, :] >= i_low[:, None]) & (j[None, :] < i_high[:, None]) & (s > HIDDEN / 2)
    return tl.where(seen, s * LOG2E, HIDDEN), seen


@triton.jit
@no_type_check
def forward(
    Q, K, V, LOW, HIGH, BIASES, SETS, POSITION, Z, LSE, ENTROPY, TOP, AT, DISTANCE, MASS,
    heads, group, rows, keys, splits, span, low_batch, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    N_SETS: tl.constexpr, CAP: tl.constexpr, BIAS: tl.constexpr, STATS: tl.constexpr, FAR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head against the keys [split * span, ...): all outputs are those of these keys alone."""
    tile, bh, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    b, h = bh // heads, bh % heads
    kv = b * (heads // group) + h // group
    r = tile * BM + tl.arange(0, BM)
    real = r < rows
    d, dv = tl.arange(0, DP), tl.arange(0, DVP)
    q = tl.load(Q + (bh * rows + r[:, None]) * D + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
    low = tl.load(LOW + b * low_batch + r, mask=real, other=keys)
    high = tl.load(HIGH + b * low_batch + r, mask=real, other=0)
    low, high = tl.maximum(low, split * span), tl.minimum(high, (split + 1) * span)
    place = tl.load(POSITION + r, mask=real, other=0)
    m = tl.full((BM,), HIDDEN, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    warmth = tl.zeros((BM,), tl.float32)
    far = tl.zeros((BM,), tl.float32)
    at = tl.full((BM,), -1, tl.int32)
    z = tl.zeros((BM, DVP), tl.float32)
    mass = tl.zeros((BM, 16), tl.float32)
    sets = tl.arange(0, 16)
    begin = tl.min(tl.where(high > low, low, keys)) // BN * BN
    end = tl.max(tl.where(high > low, high, 0))
    for start in range(begin, end, BN):
        j = start + tl.arange(0, BN)
        inside = j < keys
        k = tl.load(K + (kv * keys + j[None, :]) * D + d[:, None], mask=inside[None, :] & (d[:, None] < D), other=0.0)
        bias = tl.load(BIASES + bh * keys + j, mask=inside, other=0.0) if BIAS else 0.0
        s, seen = _scores(q, k, low, high, j, bias, scale, softcap, CAP, BIAS, PRECISION)
        best = tl.max(s, 1)
        new = tl.maximum(m, best)
        if STATS:
            at = tl.where(best > m, start + tl.argmax(s, 1).to(tl.int32), at)
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
        v = tl.load(
            V + (kv * keys + j[:, None]) * DV + dv[None, :], mask=inside[:, None] & (dv[None, :] < DV), other=0.0
        )
        z = z * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m = new
    sees = total > 0
    factor = tl.where(sees, 1.0 / tl.where(sees, total, 1.0), 0.0)
    out = (split * tl.num_programs(1) + bh) * rows + r
    log = tl.log2(tl.where(sees, total, 1.0))
    tl.store(LSE + out, tl.where(sees, (m + log) * LN2, float("-inf")), mask=real)
    tl.store(Z + out[:, None] * DV + dv[None, :], z * factor[:, None], mask=real[:, None] & (dv[None, :] < DV))
    if STATS:
        tl.store(ENTROPY + out, tl.where(sees, (log - factor * warmth) * LN2, 0.0), mask=real)
        tl.store(TOP + out, factor, mask=real)
        tl.store(AT + out, tl.where(sees, at, -1), mask=real)
    if FAR:
        tl.store(DISTANCE + out, far * factor, mask=real)
    if N_SETS > 0:
        tl.store(MASS + out[:, None] * 16 + sets[None, :], mass * factor[:, None], mask=real[:, None])


@triton.jit
@no_type_check
def received(
    Q, K, LOW, HIGH, BIASES, LSE, SHARE, RECEIVED, SEEN,
    heads, group, rows, keys, low_batch, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAP: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Column sums of a tile of keys over all rows, given the log-sum-exp of the rows: no atomics, one order of sums."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    kv = b * (heads // group) + h // group
    j = tile * BN + tl.arange(0, BN)
    inside = j < keys
    d = tl.arange(0, DP)
    k = tl.load(K + (kv * keys + j[None, :]) * D + d[:, None], mask=inside[None, :] & (d[:, None] < D), other=0.0)
    bias = tl.load(BIASES + bh * keys + j, mask=inside, other=0.0) if BIAS else 0.0
    total = tl.zeros((BN,), tl.float32)
    count = tl.zeros((BN,), tl.int32)
    for start in range(0, rows, BM):
        r = start + tl.arange(0, BM)
        real = r < rows
        low = tl.load(LOW + b * low_batch + r, mask=real, other=keys)
        high = tl.load(HIGH + b * low_batch + r, mask=real, other=0)
        if (tl.max(high) > tile * BN) & (tl.min(low) < (tile + 1) * BN):
            whole = real[:, None] & (d[None, :] < D)
            q = tl.load(Q + (bh * rows + r[:, None]) * D + d[None, :], mask=whole, other=0.0)
            s, seen = _scores(q, k, low, high, j, bias, scale, softcap, CAP, BIAS, PRECISION)
            lse = tl.load(LSE + bh * rows + r, mask=real, other=0.0) * LOG2E
            share = tl.load(SHARE + bh * rows + r, mask=real, other=0.0)
            p = tl.where(seen, tl.exp2(s - tl.where(seen, lse[:, None], 0.0)), 0.0) * share[:, None]
            total += tl.sum(p, 0)
            count += tl.sum(seen.to(tl.int32), 0)
    tl.store(RECEIVED + bh * keys + j, total, mask=inside)
    tl.store(SEEN + bh * keys + j, count, mask=inside)
