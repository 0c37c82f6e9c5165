"""`engine="ray"`: the cells of a call done by Ray's workers, on this machine or on a cluster.

A worker is a process that gets the model once: out of Ray's object store, where the weights are stored once for all
workers of a machine and are not copied, or by loading it itself (`model=` a name or directory that it can reach). It
computes chunks of cells and hands the numbers back; it writes nothing. This process writes them down (`out=`) as they
come, so that a run that is stopped goes on where it was, with any engine. A worker that dies is replaced and its chunk
done again; a node may leave and others join. A chunk that raises is tried again, `tries` times in all; then the cell
that raises is found, named, and left out, and the rest is done before the call raises `CellsFailed`. A chunk that takes
too much memory is halved. Limits: the same bytes as in one process need one kind of machine and as many threads there
(`threads`). A chunk that was halved for want of memory has matrix products of other shapes, which may round otherwise.
The weights in a worker cannot be written to. A model spread over several devices goes to one in a worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from interp.cells.work import Finished, Work
from interp.scale.workers.cluster import connected
from interp.scale.workers.crew import Crew, Terms


@dataclass(frozen=True, kw_only=True)
class Ray(Terms):
    """Workers of a Ray cluster: `workers` of them (as many as fit, also on nodes that join later), each with `threads`
    CPUs and `gpus` devices (0.25: four share one).

    `address` is the cluster's head ("10.0.0.1:6379"), "auto" the cluster of this machine; without it, `RAY_ADDRESS`, or
    a cluster of this machine that ends with the call. `ray.init()` before keeps one for several calls. `deaths` is how
    many workers may die over one chunk (those whose node left do not count), `wait` how many seconds to wait for a node
    that can hold a worker.
    """

    address: str | None = None
    """The head of the cluster ("10.0.0.1:6379"), or "auto"; None for `RAY_ADDRESS` or a cluster of this machine."""

    def run(self, work: Work, bounds: Sequence[tuple[int, int]]) -> Iterator[Finished]:
        """Chunks as they are finished, in any order; `CellsFailed` at the end names the cells that were not."""
        with connected(self.address, cpus=self._cpus()) as ray:
            yield from Crew(ray, self, work, bounds).finished()

    def _cpus(self) -> int:
        """Processors of a cluster of our own: those this process may use, and as many as the workers need."""
        mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(mine, (self.workers or 1) * self.threads)
