"""A call whose result is made of one list of cells: whole or a shard, written down or not, here or by an engine.

The call gives its work, what the result needs in addition to the cells (a `Frame`), and how the two become the result;
merging shards uses the same two. The cells are in `journal/` of the call's directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.cells.journal import PLAN, Journal, Values, kept
from interp.cells.shards import Frame, Shard, framed, mark, part, refuse_shard
from interp.cells.work import Floors, Work, begin, gathered, read_back
from interp.hooks.drive.faster import settled
from interp.hooks.drive.sweep import activations

Result = Callable[[Frame, Values, Floors], Any]
JOURNAL = "journal"
CHUNK = 2**26
"""Bytes under way together in a sweep that is written down, unless its call says otherwise: not by the memory that
happens to be free, so that a chunk is the same on every machine."""


def answered(
    call: str, work: Work, frame: Frame, result: Result, *, out: str | Path | None, shard: Shard | None, engine: Any
) -> Any:
    """The call's result; of a shard, what was done."""
    if shard is None:
        refuse_shard(out)
    elif out is not None:
        mark(out, call, shard)
    begun = begin(work, out=None if out is None else Path(out) / JOURNAL, shard=shard)
    values, floors = gathered(work, begun.run(engine))
    if shard is not None and out is not None:
        framed(out, frame)
        return part(out, call, shard)
    found = result(frame, values, floors)
    if out is not None:
        with kept(Path(out)):
            found.save(out)
    return found


def product_of(folder: str | Path, task: Mapping[str, Any], model: Any) -> str:
    """The choice of matrix products of cells that are written down there: the plan's, else what this machine has."""
    plan = Journal(folder).known(task) if (Path(folder) / PLAN).exists() else None
    return settled(activations(model.module, model.anatomy)) if plan is None else str(plan["product"])


def ended(result: Result, folder: Path, frame: Frame) -> Any:
    """The result of a call all of whose chunks are there, written as the call itself writes it."""
    found = result(frame, *read_back(folder / JOURNAL))
    found.save(folder)
    return found


def frame_without(result: Any, names: Sequence[str], **more: Any) -> Frame:
    """A result without its tensors of these names, as it comes back from disk."""
    facts = json.loads(json.dumps({**result.facts(), **more}, default=str))
    return Frame(facts, {name: one for name, one in result.tensors().items() if name not in names})
