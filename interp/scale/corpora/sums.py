"""Sums that do not depend on the order: whole numbers in pieces, so that shards add up to the same bits as one run.

A number x in double precision is written as

    x = d0 2^31 + d1 + d2 2^-31 + d3 2^-62,    0 <= d1, d2, d3 < 2^31

whose digits d are whole; what is below 2^-62 is cut off, from each number alone. Digits are added as whole numbers and
carried, which is exact and the same in any order, where floating point sums are neither.
Limits: |x| below 2^62; an error of at most 2^-62 a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIGITS, BITS = 4, 31
BASE = 1 << BITS


def digits(x: Tensor) -> Tensor:
    """[...] doubles as [4, ...] whole numbers."""
    if bool((x.abs() >= 2.0**62).any()) or not bool(torch.isfinite(x).all()):
        raise OverflowError(f"a number beyond 2^62 cannot be summed exactly: {float(x.abs().max())}")
    whole = x.floor()
    rest = (x - whole) * BASE
    middle = rest.floor()
    low = ((rest - middle) * BASE).floor()
    return carried(torch.stack([torch.zeros_like(whole), whole, middle, low]).long())


def carried(d: Tensor) -> Tensor:
    """The same number with all digits but the first from 0 to before 2^31."""
    d = d.clone()
    for n in range(DIGITS - 1, 0, -1):
        d[n - 1] += d[n] >> BITS
        d[n] &= BASE - 1
    return d


def summed(x: Tensor) -> Tensor:
    """The sum over the first axis, as digits: [n, ...] doubles to [4, ...]."""
    return carried(digits(x).sum(1))


def value(d: Tensor) -> Tensor:
    """Digits as doubles."""
    scales = torch.tensor([2.0**BITS, 1.0, 2.0**-BITS, 2.0 ** (-2 * BITS)], dtype=torch.float64)
    parts = d.double() * scales.view(-1, *[1] * (d.ndim - 1))
    return parts[3] + parts[2] + parts[1] + parts[0]
