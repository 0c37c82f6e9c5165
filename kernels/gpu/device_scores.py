# mypy: disable-error-code="no-untyped-def"
"""What all Triton kernels share: which keys a row sees, scores through every stage of edits, and the order of a top-k.

Import the kernels only through `launch.kernels`, which decides about the interpreter first. Names in capitals are
pointers or constants of compilation, as everywhere in Triton. A mask is either one run of keys per row, [low, high), or
a list of the blocks to visit with a tile of bits for those seen in part. Edits of scores are rows of a table (bias, and
the slopes of positive and negative scores); each query names its row of the table. Hidden scores are finite and large
negative, so that weight times score is 0 and not NaN.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LAST = tl.constexpr(0x7FFFFFFF)
# The packed form of a score of minus infinity.
GONE = tl.constexpr(-(0x7F800001 << 32))


@triton.jit
@no_type_check
def bounds(LOW, HIGH, b, low_batch, r, real, keys, TABLE: tl.constexpr):
    """The keys [low, high) of each row; all of them where a list of blocks says more."""
    if TABLE:
        low = tl.where(real, 0, keys)
        high = tl.where(real, keys, 0)
    else:
        low = tl.load(LOW + b * low_batch + r, mask=real, other=keys)
        high = tl.load(HIGH + b * low_batch + r, mask=real, other=0)
    return low, high


@triton.jit
@no_type_check
def rows_of(X, at, real, d, width):
    """Rows `at` of X [row, width], zeros where they are not real."""
    return tl.load(X + at[:, None] * width + d[None, :], mask=real[:, None] & (d[None, :] < width), other=0.0)


@triton.jit
@no_type_check
def keys_of(K, at, inside, d, width):
    """Rows `at` of K as columns."""
    return tl.load(K + at[None, :] * width + d[:, None], mask=inside[None, :] & (d[:, None] < width), other=0.0)


@triton.jit
@no_type_check
def queries(
    Q, LOW, HIGH, TEMPERS, WHICH, bh, b, r, real, d, rows, keys, low_batch,
    D: tl.constexpr, TABLE: tl.constexpr, TEMPER: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Rows r of one head: q, the keys they see, one over their temperature, their row of the table of key edits."""
    row = bh * rows + r
    q = rows_of(Q, row, real, d, D)
    low, high = bounds(LOW, HIGH, b, low_batch, r, real, keys, TABLE)
    temper = tl.load(TEMPERS + row, mask=real, other=1.0) if TEMPER else 1.0
    which = tl.load(WHICH + row, mask=real, other=0) if PER_ROW else tl.load(WHICH + bh * rows)
    return q, low, high, temper, which


@triton.jit
@no_type_check
def to_visit(COUNT, entries, low, high, keys, BN: tl.constexpr, TABLE: tl.constexpr):
    """The blocks of keys from the first to the one past the last that some row sees, or places in their list."""
    if TABLE:
        begin, end = 0, tl.load(COUNT + entries)
    else:
        begin, end = tl.min(tl.where(high > low, low, keys)) // BN, tl.cdiv(tl.max(tl.where(high > low, high, 0)), BN)
    return begin, end


@triton.jit
@no_type_check
def keyed(VALUES, which, j, inside, keys, PER_ROW: tl.constexpr):
    """Values of these keys from the row of a table that each query names; one row for all unless PER_ROW."""
    if PER_ROW:
        found = tl.load(VALUES + which[:, None] * keys + j[None, :], mask=inside[None, :], other=0.0)
    else:
        found = tl.load(VALUES + which * keys + j, mask=inside, other=0.0)[None, :]
    return found


@triton.jit
@no_type_check
def scores(
    q, k, temper, BIASES, UP, DOWN, which, j, inside, keys, scale, softcap,
    CAP: tl.constexpr, TEMPER: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Natural scores; the slope of the emphasis and the capped score, which a gradient needs; the key biases."""
    capped = tl.dot(q, k, input_precision=PRECISION) * scale
    if CAP:
        x = capped / softcap
        e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
        capped = softcap * tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    s = capped
    if TEMPER:
        s = s * temper[:, None]
    bias = tl.zeros_like(s)
    if BIAS:
        bias += keyed(BIASES, which, j, inside, keys, PER_ROW)
        s = s + bias
    slope = tl.full(s.shape, 1.0, tl.float32)
    if SLOPE:
        up = keyed(UP, which, j, inside, keys, PER_ROW)
        slope = tl.where(s > 0, up, keyed(DOWN, which, j, inside, keys, PER_ROW))
        s = s * slope
    return s, slope, capped, bias


@triton.jit
@no_type_check
def visible(
    low, high, bias, j, b, inside, keys, entry, PART, BITS, KEEP,
    BM: tl.constexpr, BN: tl.constexpr, TABLE: tl.constexpr, KEPT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Which scores of a block count."""
    seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
    if TABLE:
        part = tl.load(PART + entry)
        at = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        bits = tl.load(BITS + part.to(tl.int64) * (BM * BN) + at, mask=at < tl.where(part < 0, 0, BM * BN), other=1)
        seen = seen & (bits != 0)
    if KEPT:
        seen = seen & (tl.load(KEEP + b * keys + j, mask=inside, other=0) != 0)[None, :]
    if BIAS:
        seen = seen & (bias > HIDDEN / 2)
    return seen


@triton.jit
@no_type_check
def block(
    q, k, temper, which, low, high, j, b, inside, keys, entry, scale, softcap, BIASES, UP, DOWN, PART, BITS, KEEP,
    BM: tl.constexpr, BN: tl.constexpr, TABLE: tl.constexpr, KEPT: tl.constexpr, CAP: tl.constexpr,
    TEMPER: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores, their slope, capped scores, and which of them count."""
    s, slope, capped, bias = scores(
        q, k, temper, BIASES, UP, DOWN, which, j, inside, keys, scale, softcap, CAP, TEMPER, BIAS, SLOPE, PER_ROW,
        PRECISION,
    )  # fmt: skip
    seen = visible(low, high, bias, j, b, inside, keys, entry, PART, BITS, KEEP, BM, BN, TABLE, KEPT, BIAS)
    return s, slope, capped, seen


@triton.jit
@no_type_check
def packed(s, j):
    """Score and key as one number: larger scores first, then smaller keys."""
    bits = s.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LAST)
    return (ordered.to(tl.int64) << 32) | (-j + LAST).to(tl.int64)


@triton.jit
@no_type_check
def unpacked(x):
    """Score and key."""
    ordered = (x >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & LAST)
    return bits.to(tl.float32, bitcast=True), -(x & LAST).to(tl.int32) + LAST


@triton.jit
@no_type_check
def nothing_yet(BM: tl.constexpr, K: tl.constexpr):
    """The top K before any key was seen."""
    return tl.full((BM, K), GONE, tl.int64)


@triton.jit
@no_type_check
def best_of(best, s, j, K: tl.constexpr):
    """The K best of those so far and a block, one after the other."""
    x = packed(s, j[None, :])
    rank = tl.arange(0, K)[None, :]
    found = best
    for n in tl.static_range(K):
        first = tl.maximum(tl.max(x, 1), tl.max(best, 1))[:, None]
        found = tl.where(rank == n, first, found)
        x = tl.where(x == first, GONE, x)
        best = tl.where(best == first, GONE, best)
    return found
