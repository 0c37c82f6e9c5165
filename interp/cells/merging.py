"""Shards put together: whether they belong together, and the directory that one run would have written.

Chunks are copied as they are, each compared with its checksum and its plan first; where two shards have the same chunk
it has to be the same bytes. What the result needs in addition to its cells has to be the same in all shards, but for
the time it took; where it differs by rounding, shards were made on machines that round differently, and that is said.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.cells.journal import PLAN, Journal, differing, kept, plan_of, short
from interp.cells.shards import FRAME, MARK, Frame, frame_of, marked
from interp.kernels.errors import InterpError
from interp.saving import renamed, whole

Finish = Callable[[str, Path, Frame], Any]
TIMES = ("seconds", "halvings")
"""What may differ from shard to shard, by name: what it took."""
ROUNDING = 1e-3


class ShardsDiffer(InterpError):
    """Shards that do not belong together, or are not all there."""


def together(shards: Sequence[str | Path]) -> tuple[str, list[Path]]:
    """The call that these are the shards of, and their directories in order; refused where one is missing, there twice,
    of another call, or made by other code."""
    folders = [Path(one) for one in shards]
    if not folders:
        raise ShardsDiffer("no shards were given: name the directory of every one of them.")
    known: dict[int, Path] = {}
    first = marked(folders[0])
    for folder in folders:
        mine = marked(folder)
        for what in ("call", "of", "code"):
            if mine[what] != first[what]:
                name, a, b = differing(what, first[what], mine[what])
                raise ShardsDiffer(
                    f"{folders[0]} and {folder} are no shards of one call: their {_OF.get(name, name)} is {short(a)}"
                    f" and {short(b)}."
                )
        if mine["index"] in known:
            raise ShardsDiffer(
                f"{known[mine['index']]} and {folder} are the same shard, {mine['index']}/{mine['of']}: give each once."
            )
        known[mine["index"]] = folder
    missing = [f"{n}/{first['of']}" for n in range(first["of"]) if n not in known]
    if missing:
        raise ShardsDiffer(
            f"of {first['of']} shards these are missing: {', '.join(missing)}. Do them, and name them too."
        )
    return str(first["call"]), [known[n] for n in range(first["of"])]


_OF = {"of": "number of shards", "code sources": "code (a digest of its sources)", "code interp": "version of interp"}


def merged(folders: Sequence[Path], out: str | Path, finish: Finish) -> Any:
    """Write into a new or empty directory what one run would have; gives back the result."""
    to = free(out)
    places = _places(folders)
    result = None
    with kept(to), whole(to) as new:
        for place in sorted({p for p, name in places if name == PLAN}):
            _chunks([folder / place for folder in folders], new / place)
        for place in sorted((p for p, name in places if name == MARK), key=lambda p: -len(p.parts)):
            call = str(marked(folders[0] / place)["call"])
            result = finish(call, new / place, _one([folder / place for folder in folders]))
    return result


def elsewhere(folders: Sequence[Path], out: str | Path, put: Callable[[Sequence[Path], Path], Any]) -> Any:
    """The same for shards that are merged in another way; the result says where it is."""
    to = free(out)
    with kept(to), whole(to) as new:
        result = put(folders, new)
    return replace(result, folder=to)


def free(out: str | Path) -> Path:
    """A directory that is new or empty."""
    to = Path(out)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        held = ", a sweep or what was merged before" if (to / PLAN).exists() else ""
        raise InterpError(f"{out} is not empty{held}: shards are merged into a directory of their own.")
    return to


def _places(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Where plans and marks are in the shards, the same in all of them."""
    names = (PLAN, MARK)
    found = [
        sorted((file.parent.relative_to(folder), name) for name in names for file in folder.rglob(name))
        for folder in folders
    ]
    for folder, mine in zip(folders, found, strict=True):
        other = sorted(set(found[0]) ^ set(mine))
        if other:
            place, name = other[0]
            lacks = folder if other[0] not in mine else folders[0]
            raise ShardsDiffer(
                f"{lacks} has no {place / name}, which the other shards have: it is not finished. Make the same call"
                " again to continue it."
            )
    return found[0]


def _chunks(shards: Sequence[Path], to: Path) -> None:
    """One journal: the plan, and every chunk from the shard that has it."""
    plans = [plan_of(shard / PLAN) for shard in shards]
    for shard, plan in zip(shards, plans, strict=True):
        first = {**plans[0]["task"], **{name: one for name, one in plans[0].items() if name != "task"}}
        mine = {**plan["task"], **{name: one for name, one in plan.items() if name != "task"}}
        other = next((what for what in {**first, **mine} if first.get(what) != mine.get(what)), None)
        if other is not None:
            name, a, b = differing(other, first.get(other), mine.get(other))
            raise ShardsDiffer(
                f"{shards[0]} and {shard} do not belong together: their {name} is {short(a)} and {short(b)}."
            )
    new, sources = Journal(to), [Journal(shard) for shard in shards]
    for low, high in plans[0]["chunks"]:
        have = [one for one in sources if one.read(low, high) is not None]
        if not have:
            raise ShardsDiffer(f"{_unfinished(plans[0], shards)}.")
        data = [one.chunk(low, high).read_bytes() for one in have]
        if any(one != data[0] for one in data):
            raise ShardsDiffer(
                f"{have[0].folder} and {have[1].folder} both have cells {low} to {high - 1}, with other numbers."
            )
        new.put(new.chunk(low, high), data[0])
    renamed(to / PLAN, (shards[0] / PLAN).read_bytes())


def _unfinished(plan: Mapping[str, Any], shards: Sequence[Path]) -> str:
    """Which cells no shard has, and whose they are."""
    missing = [
        f"cells {low} to {high - 1} (of {shards[(n + plan['turn']) % len(shards)]})"
        for n, (low, high) in enumerate(plan["chunks"])
        if not any(Journal(shard).chunk(low, high).exists() for shard in shards)
    ]
    more = f" and {len(missing) - 5} more ranges of cells" if len(missing) > 5 else ""
    return (
        f"not finished: no shard has {', '.join(missing[:5])}{more}; make the call of that shard again to continue it"
    )


def _one(shards: Sequence[Path]) -> Frame:
    """What all shards hold in addition to their cells."""
    frames = []
    for shard in shards:
        frame = frame_of(shard)
        if frame is None:
            raise ShardsDiffer(
                f"{shard} is not finished, it has no {FRAME[1]} yet: make the same call again to continue it."
            )
        frames.append(frame)
    first = frames[0]
    for shard, frame in zip(shards, frames, strict=True):
        name, a, b = _differing("", json.loads(json.dumps(first.facts)), json.loads(json.dumps(frame.facts)))
        if name:
            raise ShardsDiffer(f"{shards[0]} and {shard} do not belong together: {name} is {short(a)} and {short(b)}.")
        _alike(shards[0], first.tensors, shard, frame.tensors)
    return Frame(_summed([frame.facts for frame in frames]), first.tensors)


def _differing(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Where two values differ but for times; an empty name where they do not."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            if key not in TIMES and key not in ("shard", "sha256"):
                found = _differing(f"{name} {key}".strip(), a.get(key), b.get(key))
                if found[0]:
                    return found
        return "", None, None
    return ("", None, None) if a == b or (a != a and b != b) else (name, a, b)


def _alike(one: Path, a: Mapping[str, Tensor], other: Path, b: Mapping[str, Tensor]) -> None:
    for name in {**a, **b}:
        if name not in a or name not in b or a[name].shape != b[name].shape:
            raise ShardsDiffer(f"{one} and {other} do not belong together: {name} has another shape.")
        x, y = a[name].double(), b[name].double()
        if not torch.allclose(x, y, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            raise ShardsDiffer(
                f"{one} and {other} do not belong together: {name} differs by {float((x - y).abs().max()):.3g}."
            )
        if not torch.equal(x.nan_to_num(), y.nan_to_num()):
            warnings.warn(
                f"{other} was made on a machine that rounds differently from the machine of {one} ({name}): the"
                " result has numbers of both machines, and another run may give other bytes.",
                stacklevel=4,
            )


def _summed(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of the first, with what all of them took."""
    made = dict(facts[0])
    for name, value in made.items():
        if isinstance(value, Mapping):
            made[name] = _summed([one[name] for one in facts])
        elif name in TIMES:
            made[name] = round(sum(one[name] for one in facts), 3)
    return made
