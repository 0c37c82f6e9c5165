"""What a piece of work will take, said before it is done: forward passes, memory, and time from one probe batch."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.hooks.run.keeper import Wish
from interp.hooks.run.size import estimate

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True)
class Cost:
    """`forwards` are passes over all prompts, were none shortened; `seconds` what they take at the probe's pace."""

    forwards: int
    prompts: int
    tokens: int
    megabytes: float
    probe_seconds: float

    @property
    def seconds(self) -> float:
        """On this machine as it is now."""
        return self.forwards * self.probe_seconds

    def __str__(self) -> str:
        return (
            f"cost: about {self.forwards:,} forward passes of {self.prompts} prompts x {self.tokens} tokens,"
            f" {self.megabytes:,.0f} MB of recordings, {_time(self.seconds)} (one pass took {self.probe_seconds:.2g} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


def cost(model: Model, inputs: Any, forwards: int) -> Cost:
    """From one pass over the inputs; recordings are every head's z of two runs."""
    x = model.inputs(inputs)
    anatomy = model.ready()
    sites = [site for name in anatomy.towers for site in anatomy.sites(f"{name}.L*.z")]
    size = estimate(anatomy, Wish(sites), x, dtype=model.dtype)
    with torch.no_grad():
        start = time.perf_counter()
        model.module(**model.called_with(x.kwargs))
        took = time.perf_counter() - start
    return Cost(forwards, x.batch, x.length, round(2 * size / 2**20, 1), round(took, 4))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
