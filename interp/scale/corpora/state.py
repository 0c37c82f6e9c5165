"""What has been read of a corpus: tallies, counts, the documents that are named, and what could not be read.

States add up to the same in any order. In a directory there are `plan.json`, which says whose state it is and is fixed,
and `state.json` with `state-N.safetensors`, written after block N by renaming: a run that was killed goes on after the
last block that was written down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.sealed import loaded, sealed, understood, unsealed
from interp.kernels.errors import InterpError
from interp.saving import renamed, write
from interp.scale.corpora.documents import Bad, Document
from interp.scale.corpora.tally import Tally

FORMAT = 1
PLAN, STATE = "corpus-plan.json", "state.json"
COUNTS = ("documents", "tokens", "cut", "short", "bad")
LISTED, WORDS = 100, 160
"""How many places of what could not be read are kept, and how many signs of a document that is named."""
Said = Mapping[tuple[int, int], tuple[str, str]]
"""By block and number, where a document is and how it begins."""


@dataclass(frozen=True)
class Added:
    """What some blocks add up to."""

    tally: Tally
    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    said: Said = field(default_factory=dict)
    bad: tuple[tuple[str, str], ...] = ()

    @classmethod
    def empty(cls, top: int, quantiles: bool, *, bad: Sequence[Bad] = (), short: int = 0) -> Added:
        """Nothing measured."""
        counts = dict.fromkeys(COUNTS, 0) | {"bad": len(bad), "short": short}
        return cls(Tally({}, top, quantiles), counts, {}, _listed((one.where, one.why) for one in bad))

    @classmethod
    def of(cls, tally: Tally, counts: Mapping[str, int], read: Sequence[Document]) -> Added:
        """Of documents that were measured."""
        said = {(one.block, one.number): (one.where, one.text[:WORDS]) for one in read}
        return cls(tally, dict.fromkeys(COUNTS, 0) | dict(counts), said)

    def __add__(self, other: Added) -> Added:
        tally = self.tally + other.tally
        counts = {name: self.counts[name] + other.counts[name] for name in COUNTS}
        return Added(tally, counts, _named(tally, {**self.said, **other.said}), _listed((*self.bad, *other.bad)))

    @property
    def anything(self) -> bool:
        """Whether there was anything to read."""
        return any(self.counts.values())

    def tensors(self) -> dict[str, Tensor]:
        """As tensors alone: an engine hands these back, and a file holds them."""
        words = {"counts": self.counts, "bad": self.bad, "top": self.tally.top, "quantiles": self.tally.quantiles,
                 "said": [[*at, *what] for at, what in sorted(self.said.items())]}  # fmt: skip
        return {**self.tally.held, "words": torch.tensor(list(json.dumps(words).encode()), dtype=torch.uint8)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Added:
        """From its tensors."""
        held = dict(tensors)
        words = json.loads(bytes(held.pop("words").tolist()))
        said = {(int(block), int(n)): (str(where), str(text)) for block, n, where, text in words["said"]}
        bad = tuple((str(where), str(why)) for where, why in words["bad"])
        return cls(Tally(held, int(words["top"]), bool(words["quantiles"])), words["counts"], said, bad)


def _named(tally: Tally, said: Said) -> dict[tuple[int, int], tuple[str, str]]:
    """Those documents that are among the `top` of some label."""
    if not tally.top:
        return {}
    kept = {
        (int(block), int(n)) for name in tally.names for block, n in tally.part(name, "where").flatten(0, 1).tolist()
    }
    return {at: what for at, what in said.items() if at in kept}


def _listed(bad: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(bad))[:LISTED]


class Kept:
    """The directory of a corpus that is being read, or none; `plan` is what is fixed: task, labels, meta."""

    def __init__(self, folder: str | Path | None, plan: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = json.loads(json.dumps({"format": FORMAT, **plan}))
        if not (self.folder / PLAN).exists():
            renamed(self.folder / PLAN, sealed(mine))
            return
        theirs = planned(self.folder)["task"]
        if name := different(theirs, mine["task"]):
            raise InterpError(
                f"{self.folder} holds another pass over a corpus: its {name} is {theirs.get(name)!r:.120}, this"
                f" one's is {mine['task'].get(name)!r:.120}. Give another directory, or remove that one."
            )

    def begun(self) -> tuple[int, Added | None]:
        """The block that comes next, and the state before it."""
        return (0, None) if self.folder is None else restored(self.folder)

    def write(self, following: int, state: Added, *, over: bool) -> None:
        """The state once all blocks before `following` are in it; the earlier one goes when this one is there."""
        if self.folder is None:
            return
        name = f"state-{following}.safetensors"
        about = {"format": FORMAT, "next": following, "over": over, "file": name}
        write(self.folder, state.tensors(), about, names=(name, STATE))
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()


def different(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first name that two tasks say other things about."""
    return next((name for name in {**a, **b} if a.get(name) != b.get(name)), None)


def planned(folder: Path) -> dict[str, Any]:
    """What is fixed of a directory: task, labels, meta."""
    about, _ = unsealed(folder / PLAN, FORMAT)
    return about


def restored(folder: Path) -> tuple[int, Added | None]:
    """The block that comes next and the state before it, as they were written down."""
    if not (folder / STATE).exists():
        return 0, None
    about, digests = unsealed(folder / STATE, FORMAT)
    with understood(folder / STATE):
        path = folder / str(about["file"])
        return int(about["next"]), Added.read(loaded(path, digests))


def reached(folder: Path) -> tuple[int, bool]:
    """The block that comes next, and whether all blocks of its own are in the state of a directory."""
    if not (folder / STATE).exists():
        return 0, False
    about, _ = unsealed(folder / STATE, FORMAT)
    with understood(folder / STATE):
        return int(about["next"]), bool(about["over"])
