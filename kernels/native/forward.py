"""The forward pass of the C++ library, one run of rows after the other."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from interp.kernels.native.library import library
from interp.kernels.native.marshal import Run, Shared, done, outputs, prepared, runs
from interp.kernels.request import Found

SUMS = ("received", "seen", "blind", "unmoved")


def forward(shared: Shared) -> Found:
    """What the library writes, of all rows; `mass` [set, batch, head, row], the other statistics under their kinds."""
    parts = [_run(shared, run) for run in runs(shared.made)]
    return {n: _joined(n, [p[n] for p in parts]) for n in parts[0]}


def _run(shared: Shared, run: Run) -> Found:
    out, ready = outputs(shared.made, run.rows), prepared(shared, run)
    ready.fill(out)
    function = library().attend
    assert function is not None
    done(shared.made, function(ctypes.byref(ready.call)))
    return {n: x.sum(0) if n in SUMS else x for n, x in out.items()}


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if name in SUMS:
        return torch.stack(parts).sum(0)
    return torch.cat(parts, 3 if name == "mass" else 2)
