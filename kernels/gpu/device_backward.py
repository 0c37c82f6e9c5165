# mypy: disable-error-code="no-untyped-def"
"""The Triton backward: gradients of q and of temperatures by tiles of rows, of k and v by tiles of keys, no atomics.

Weights are recomputed from the log-sum-exp. With G_ij the gradient of the weight p_ij (from z, masses, distance and
entropy) a score's gradient is p_ij (G_ij - delta_i), where delta_i = sum_j p_ij G_ij less the gradient of the
log-sum-exp; all of delta is known from the outputs of the forward. It then goes back through emphasis, temperature and
soft cap.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from interp.kernels.gpu.device_scores import LN2, LOG2E, bounds, scores, visible


@triton.jit
@no_type_check
def through_softmax(
    s, seen, v, dz, lse, delta, dentropy, ddistance, dmass, place, j, b, batch, inside, keys, SETS,
    N_SETS: tl.constexpr, STATS: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weights, and the gradient of the scores."""
    log = tl.where(seen, s * LOG2E - lse[:, None], 0.0)
    p = tl.where(seen, tl.exp2(log), 0.0)
    g = tl.dot(dz.to(v.dtype), tl.trans(v), input_precision=PRECISION)
    if N_SETS > 0:
        sets = tl.arange(0, 16)
        members = tl.load(
            SETS + (sets[:, None] * batch + b) * keys + j[None, :],
            mask=inside[None, :] & (sets[:, None] < N_SETS), other=0,
        )  # fmt: skip
        g += tl.dot(dmass, members.to(tl.float32), input_precision="tf32x3")
    if FAR:
        g += ddistance[:, None] * tl.abs(place[:, None] - j[None, :]).to(tl.float32)
    if STATS:
        g -= dentropy[:, None] * log * LN2
    return p, p * (g - delta[:, None])


@triton.jit
@no_type_check
def through_score(ds, slope, capped, temper, softcap, CAP: tl.constexpr, TEMPER: tl.constexpr, SLOPE: tl.constexpr):
    """From the gradient of the edited scores to that of scale * q k."""
    if SLOPE:
        ds = ds * slope
    if TEMPER:
        ds = ds * temper[:, None]
    if CAP:
        ds = ds * (1.0 - (capped / softcap) * (capped / softcap))
    return ds


@triton.jit
@no_type_check
def rows_gradient(
    Q, K, V, LOW, HIGH, COUNT, INDEX, PART, BITS, KEEP, BIASES, UP, DOWN, WHICH, TEMPERS, SETS, POSITION,
    LSE, DELTA, DZ, DENTROPY, DDISTANCE, DMASS, DQ, DTEMPER,
    heads, group, rows, keys, low_batch, table_batch, table_head, most, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    N_SETS: tl.constexpr, STATS: tl.constexpr, FAR: tl.constexpr, TABLE: tl.constexpr, KEPT: tl.constexpr,
    CAP: tl.constexpr, TEMPER: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, and the gradient of one over the temperature, of a tile of rows of one head."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    batch = tl.num_programs(1) // heads
    kv = b * (heads // group) + h // group
    r = tile * BM + tl.arange(0, BM)
    real = r < rows
    row = bh * rows + r
    d, dv, sets = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, 16)
    q = tl.load(Q + row[:, None] * D + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
    dz = tl.load(DZ + row[:, None] * DV + dv[None, :], mask=real[:, None] & (dv[None, :] < DV), other=0.0)
    low, high = bounds(LOW, HIGH, b, low_batch, r, real, keys, TABLE)
    temper = tl.load(TEMPERS + row, mask=real, other=1.0) if TEMPER else 1.0
    which = tl.load(WHICH + row, mask=real, other=0) if PER_ROW else tl.load(WHICH + bh * rows)
    lse = tl.load(LSE + row, mask=real, other=0.0) * LOG2E
    delta = tl.load(DELTA + row, mask=real, other=0.0)
    place = tl.load(POSITION + r, mask=real, other=0) if FAR else r
    dentropy = tl.load(DENTROPY + row, mask=real, other=0.0) if STATS else delta
    ddistance = tl.load(DDISTANCE + row, mask=real, other=0.0) if FAR else delta
    dmass = tl.load(DMASS + row[:, None] * 16 + sets[None, :], mask=real[:, None], other=0.0) if N_SETS > 0 else delta
    dq = tl.zeros((BM, DP), tl.float32)
    dtemper = tl.zeros((BM,), tl.float32)
    entries = b * table_batch + h * table_head + tile
    if TABLE:
        begin, end = 0, tl.load(COUNT + entries)
    else:
        begin, end = tl.min(tl.where(high > low, low, keys)) // BN, tl.cdiv(tl.max(tl.where(high > low, high, 0)), BN)
    for n in range(begin, end):
        j = (tl.load(INDEX + entries * most + n) if TABLE else n) * BN + tl.arange(0, BN)
        inside = j < keys
        k = tl.load(K + (kv * keys + j[None, :]) * D + d[:, None], mask=inside[None, :] & (d[:, None] < D), other=0.0)
        v = tl.load(
            V + (kv * keys + j[:, None]) * DV + dv[None, :], mask=inside[:, None] & (dv[None, :] < DV), other=0.0
        )
        s, slope, capped, bias = scores(
            q, k, temper, BIASES, UP, DOWN, which, j, inside, keys, scale, softcap, CAP, TEMPER, BIAS, SLOPE, PER_ROW,
            PRECISION,
        )  # fmt: skip
        seen = visible(
            low, high, bias, j, b, inside, keys, entries * most + n, PART, BITS, KEEP, BM, BN, TABLE, KEPT, BIAS
        )
        _p, ds = through_softmax(
            s, seen, v, dz, lse, delta, dentropy, ddistance, dmass, place, j, b, batch, inside, keys, SETS, N_SETS,
            STATS, FAR, PRECISION,
        )  # fmt: skip
        if TEMPER:
            dtemper += tl.sum(ds * slope * capped, 1)
        ds = through_score(ds, slope, capped, temper, softcap, CAP, TEMPER, SLOPE)
        dq += tl.dot(ds.to(k.dtype), tl.trans(k), input_precision=PRECISION)
    tl.store(DQ + row[:, None] * D + d[None, :], dq * scale, mask=real[:, None] & (d[None, :] < D))
    if TEMPER:
        tl.store(DTEMPER + row, dtemper, mask=real)


@triton.jit
@no_type_check
def keys_gradient(
    Q, K, V, LOW, HIGH, COUNT, INDEX, PART, BITS, KEEP, BIASES, UP, DOWN, WHICH, TEMPERS, SETS, POSITION,
    LSE, DELTA, DZ, DENTROPY, DDISTANCE, DMASS, DK, DV_,
    heads, group, rows, keys, low_batch, table_batch, table_head, most, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    N_SETS: tl.constexpr, STATS: tl.constexpr, FAR: tl.constexpr, TABLE: tl.constexpr, KEPT: tl.constexpr,
    CAP: tl.constexpr, TEMPER: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys of one kv head, over all rows of all its query heads.

    INDEX lists tiles of rows where there is a TABLE; otherwise COUNT and INDEX are the first and the last one to visit.
    """
    tile, kv = tl.program_id(0), tl.program_id(1).to(tl.int64)
    kv_heads = heads // group
    b = kv // kv_heads
    batch = tl.num_programs(1) // kv_heads
    j = tile * BN + tl.arange(0, BN)
    inside = j < keys
    d, dv, sets = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, 16)
    k = tl.load(K + (kv * keys + j[None, :]) * D + d[:, None], mask=inside[None, :] & (d[:, None] < D), other=0.0)
    v = tl.load(V + (kv * keys + j[:, None]) * DV + dv[None, :], mask=inside[:, None] & (dv[None, :] < DV), other=0.0)
    dk = tl.zeros((BN, DP), tl.float32)
    dvalue = tl.zeros((BN, DVP), tl.float32)
    for member in range(group):
        h = (kv % kv_heads) * group + member
        bh = b * heads + h
        entries = b * table_batch + h * table_head + tile
        begin = 0 if TABLE else tl.load(INDEX + entries)
        for n in range(begin, tl.load(COUNT + entries)):
            r = (tl.load(INDEX + entries * most + n) if TABLE else n) * BM + tl.arange(0, BM)
            real = r < rows
            row = bh * rows + r
            q = tl.load(Q + row[:, None] * D + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
            dz = tl.load(DZ + row[:, None] * DV + dv[None, :], mask=real[:, None] & (dv[None, :] < DV), other=0.0)
            low, high = bounds(LOW, HIGH, b, low_batch, r, real, keys, TABLE)
            temper = tl.load(TEMPERS + row, mask=real, other=1.0) if TEMPER else 1.0
            which = tl.load(WHICH + row, mask=real, other=0) if PER_ROW else tl.load(WHICH + bh * rows)
            lse = tl.load(LSE + row, mask=real, other=0.0) * LOG2E
            delta = tl.load(DELTA + row, mask=real, other=0.0)
            place = tl.load(POSITION + r, mask=real, other=0) if FAR else r
            dentropy = tl.load(DENTROPY + row, mask=real, other=0.0) if STATS else delta
            ddistance = tl.load(DDISTANCE + row, mask=real, other=0.0) if FAR else delta
            masses = DMASS + row[:, None] * 16 + sets[None, :]
            dmass = tl.load(masses, mask=real[:, None], other=0.0) if N_SETS > 0 else delta
            s, slope, capped, bias = scores(
                q, k, temper, BIASES, UP, DOWN, which, j, inside, keys, scale, softcap, CAP, TEMPER, BIAS, SLOPE,
                PER_ROW, PRECISION,
            )  # fmt: skip
            seen = visible(
                low, high, bias, j, b, inside, keys, entries * most + n, PART, BITS, KEEP, BM, BN, TABLE, KEPT, BIAS
            )
            p, ds = through_softmax(
                s, seen, v, dz, lse, delta, dentropy, ddistance, dmass, place, j, b, batch, inside, keys, SETS,
                N_SETS, STATS, FAR, PRECISION,
            )  # fmt: skip
            ds = through_score(ds, slope, capped, temper, softcap, CAP, TEMPER, SLOPE)
            dvalue += tl.dot(tl.trans(p.to(v.dtype)), dz.to(v.dtype), input_precision=PRECISION)
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
    tl.store(DK + (kv * keys + j[:, None]) * D + d[None, :], dk * scale, mask=inside[:, None] & (d[None, :] < D))
    tl.store(DV_ + (kv * keys + j[:, None]) * DV + dv[None, :], dvalue, mask=inside[:, None] & (dv[None, :] < DV))
