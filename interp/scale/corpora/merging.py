"""Shards of a pass over a corpus added up: the directory that one pass would have written, and how far one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.cells.journal import kept
from interp.cells.merging import ShardsDiffer, free
from interp.cells.shards import MARK, marked
from interp.cells.status import Status, Stretch
from interp.results.saved import tupled
from interp.saving import whole
from interp.scale.corpora.read import CorpusHeads, reductions
from interp.scale.corpora.state import Added, Kept, different, planned, reached, restored


def merged(folders: Sequence[Path], out: str | Path) -> CorpusHeads:
    """Add up shards whose marks belong together, into a new or empty directory."""
    to = free(out)
    plan = planned(folders[0])
    for folder in folders:
        mine = planned(folder)
        if name := different(plan["task"], mine["task"]):
            raise ShardsDiffer(
                f"{folders[0]} and {folder} do not belong together: their {name} is {plan['task'].get(name)!r:.80} and"
                f" {mine['task'].get(name)!r:.80}."
            )
        if not reached(folder)[1]:
            raise ShardsDiffer(f"{folder} is not finished: make the same call again to continue it.")
    parts = [restored(folder) for folder in folders]
    states = [state for _, state in parts if state is not None]
    with kept(to), whole(to) as new:
        total = sum(states[1:], states[0])
        fixed = {name: plan[name] for name in ("task", "labels", "meta")}
        Kept(new, fixed).write(max(following for following, _ in parts), total, over=True)
        found = _read(total, fixed)
        found.save(new)
    return found


def _read(state: Added, plan: Any) -> CorpusHeads:
    labels = {name: tupled(every) for name, every in plan["labels"].items()}
    return CorpusHeads.of(state, labels, reductions(plan["task"]["reduce"]), plan["meta"])


def progress(folder: str | Path) -> Status:
    """How many blocks of a corpus are added up, of a pass or a shard of one."""
    folder = Path(folder)
    shard = marked(folder) if (folder / MARK).exists() else {"index": 0, "of": 1}
    following, over = reached(folder)
    blocks = planned(folder)["task"]["blocks"]
    of = following if blocks is None else blocks
    mine = range(shard["index"], of, shard["of"])
    done = sum(n < following for n in mine)
    missing = tuple(f"blocks {mine[done]}-{mine[-1]}" for _ in range(done < len(mine)))
    part = Stretch("", done, len(mine), missing, (), None if missing else 0.0)
    what = "a corpus" if shard["of"] == 1 else f"shard {shard['index']}/{shard['of']} of a corpus"
    return Status(folder, what, (part,), over)
