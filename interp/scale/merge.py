"""One result of all the shards of a call: the same bytes as one run, made without the model.

A call with `shard=(index, of)` leaves a directory with its part of the cells. Shards of another model, other data,
other code or another way of cutting the cells are refused, and so are shards that are missing, there twice, not
finished or damaged: the message says which and what differs. Timings (`run.json`) are the sum of all shards.
Cost: every chunk is read twice and written once. Limits: the same bytes need the same kind of machine, versions and
number of threads; where shards round differently that is warned about.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from interp.cells.calls import ended
from interp.cells.merging import elsewhere, merged, together
from interp.cells.shards import Frame
from interp.kernels.errors import InterpError

RESULTS = {
    "interp.long.influence": "interp.long.influence:result",
    "interp.retrieval_heads": "interp.long.retrieval_heads:result",
    "interp.edges": "interp.circuits.edges:result",
}
"""Calls made of one list of cells, and what makes their result of it."""
FINISHED = {
    "interp.patch": "interp.patching.swept:finished",
    "interp.attribute": "interp.attribution.attribute:finished",
    "interp.importance": "interp.heads.measures.kept:filled",
}
"""Other calls, and who finishes their directory once its cells are there."""
ADDED = {"interp.scale.corpus": "interp.scale.corpora.merging:merged"}
"""Calls whose shards are sums and no lists of cells, and who adds them up."""
WHOLE = {"interp.reporting.experiment": "interp.reporting.experiment:merged"}
"""Calls whose shards are put together in their own way: from the shards' directories into a new one."""


def merge(shards: Iterable[str | Path], out: str | Path) -> Any:
    """The result that one run would have given, also written to `out`, a new or empty directory."""
    if isinstance(shards, str | Path):
        raise InterpError(f"shards are several directories, got {shards!r}: give a list of them.")
    call, folders = together(list(shards))
    if call in ADDED:
        return _named(ADDED[call])(folders, out)
    if call in WHOLE:
        return elsewhere(folders, out, _named(WHOLE[call]))
    if call not in RESULTS and call not in FINISHED:
        there = ", ".join((*RESULTS, *FINISHED, *ADDED, *WHOLE))
        raise InterpError(f"{folders[0]} is a shard of {call!r}, and this version merges {there}.")
    return merged(folders, out, _finished)


def _finished(call: str, folder: Path, frame: Frame) -> Any:
    if call in RESULTS:
        return ended(_named(RESULTS[call]), folder, frame)
    return _named(FINISHED[call])(folder, frame)


def _named(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)
