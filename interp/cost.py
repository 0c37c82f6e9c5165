"""What a piece of work will take, said before it is done: forward passes, memory, and time from a probe batch."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.size import estimate

if TYPE_CHECKING:
    from interp.model import Model

PROBES = 2


@dataclass(frozen=True)
class Cost:
    """`forwards` are the passes over all prompts that are planned; `seconds` what they take at the probe's pace."""

    forwards: int
    prompts: int
    tokens: int
    megabytes: float
    probe_seconds: float
    budget: float | int = math.inf
    """Passes that there might have been."""
    probe_processor: float = 0.0
    """The probe in processor time."""

    @property
    def seconds(self) -> float:
        """On this machine as it is now."""
        return self.forwards * self.probe_seconds

    def __str__(self) -> str:
        of = f" (of {self.budget:,.0f})" if self.budget < math.inf else ""
        return (
            f"cost: about {self.forwards:,} forward passes{of} of {self.prompts:,} prompts x {self.tokens} tokens,"
            f" {self.megabytes:,.0f} MB of recordings, {_time(self.seconds)} (one pass took {self.probe_seconds:.2g} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


def cost(model: Model, inputs: Any, forwards: int = 0) -> Cost:
    """From the faster of two passes over the inputs; recordings are every head's z of two runs."""
    x = model.inputs(inputs)
    anatomy = model.ready()
    sites = [site for name in anatomy.towers for site in anatomy.sites(f"{name}.L*.z")]
    size = estimate(anatomy, Wish(sites), x, dtype=model.dtype)
    took, used = (min(some) for some in zip(*(_pass(model, x) for _ in range(PROBES)), strict=True))
    return Cost(forwards, x.batch, x.length, round(2 * size / 2**20, 1), round(took, 4), probe_processor=round(used, 4))


def _pass(model: Model, x: Inputs) -> tuple[float, float]:
    """Seconds, and seconds of processors."""
    with torch.no_grad():
        start, used = time.perf_counter(), time.process_time()
        model.module(**model.called_with(x.kwargs))
        return time.perf_counter() - start, time.process_time() - used


def resident() -> int | None:
    """Bytes of main memory that this process has now, where the system says so."""
    said = Path("/proc/self/statm")
    return int(said.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if said.exists() else None


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
