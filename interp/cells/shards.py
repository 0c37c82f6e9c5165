"""One of several parts that a call is cut into, each done by whoever has time, wherever that is.

`shard=(index, of)`, or "0/4", does the chunks whose number leaves `index` when divided by `of`. Its directory has the
plan of the whole, the chunks that are its own, and `shard.json`, which says whose part it is; `frame.json` and
`frame.safetensors`, written last, hold what the result needs in addition to its cells, so that `interp.scale.merge`
makes it without the model. Any scheduler serves: shards do not need each other, and a killed one continues when it is
called again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.cells.journal import kept, progress
from interp.hooks.html import Told
from interp.hooks.sealed import sealed, understood, unsealed
from interp.kernels.errors import InterpError
from interp.provenance import code
from interp.saving import read, renamed, write

FORMAT = 1
MARK, FRAME = "shard.json", ("frame.safetensors", "frame.json")
Asked = tuple[int, int] | str | None
"""What `shard=` takes."""


@dataclass(frozen=True)
class Shard:
    """Part `index`, counted from 0, of as many as `of`."""

    index: int
    of: int

    def has(self, n: int) -> bool:
        """Whether the n-th chunk is its own."""
        return n % self.of == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def asked(shard: Any, out: str | Path | None) -> Shard | None:
    """What was asked for; a shard needs a directory."""
    if shard is None or isinstance(shard, Shard):
        return shard
    if isinstance(shard, str):
        index, _, of = shard.partition("/")
        pair: Any = (int(index), int(of)) if index.strip().isdigit() and of.strip().isdigit() else None
    else:
        pair = tuple(shard) if isinstance(shard, list | tuple) else None
    whole = pair is not None and len(pair) == 2 and all(type(n) is int for n in pair)
    if not whole or not 0 <= pair[0] < pair[1]:
        raise InterpError(
            f"shard= is (index, of) or 'index/of', counted from 0, such as (0, 4) to (3, 4); got {shard!r}."
        )
    if out is None:
        raise InterpError(
            "shard= needs out=: give each shard its own directory. The shards are merged from these directories."
        )
    return Shard(*pair)


@dataclass(frozen=True)
class Frame:
    """What a result needs in addition to its cells, plain values and tensors."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def mark(folder: str | Path, call: str, shard: Shard) -> None:
    """Write down whose part a directory is, before any work; refused where it is another's."""
    path = Path(folder) / MARK
    mine = {"format": FORMAT, "call": call, "index": shard.index, "of": shard.of, "code": code()}
    if path.exists():
        known = marked(folder)
        other = next((name for name in ("call", "of", "index", "code") if known[name] != mine[name]), None)
        if other is not None:
            raise InterpError(
                f"{folder} holds shard {known['index']}/{known['of']} of {known['call']}, whose {other} is"
                f" {known[other]!r}; this is shard {shard} of {call} ({other} {mine[other]!r}). Give each shard its"
                " own directory."
            )
        return
    with kept(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        if any(".part" not in file.name for file in Path(folder).iterdir()):  # but what a kill left half written
            raise InterpError(f"{folder} is not empty and has no shard in it: give each shard its own directory.")
        renamed(path, sealed(mine))


def marked(folder: str | Path) -> dict[str, Any]:
    """What `mark` wrote down."""
    path = Path(folder) / MARK
    if not path.is_file():
        raise InterpError(f"{folder} is no shard: it has no {MARK}. Calls with shard=(index, of) write shards.")
    found, _ = unsealed(path, FORMAT)
    with understood(path):
        said = {"call": str(found["call"]), "index": int(found["index"]), "of": int(found["of"])}
        return {**said, "code": {name: str(one) for name, one in found["code"].items()}}


def refuse_shard(folder: str | Path | None) -> None:
    """A whole run does not continue in a shard's directory."""
    if folder is not None and (Path(folder) / MARK).exists():
        known = marked(folder)
        raise InterpError(
            f"{folder} holds shard {known['index']}/{known['of']} of {known['call']}: give that shard= to continue it,"
            " or give another directory."
        )


def framed(folder: str | Path, frame: Frame) -> None:
    """Write down what the result needs in addition to its cells: this shard is done."""
    with kept(Path(folder)):
        write(folder, frame.tensors, {"format": FORMAT, **frame.facts}, names=FRAME)


def frame_of(folder: str | Path) -> Frame | None:
    """What `framed` wrote; None where the shard is not done."""
    folder = Path(folder)
    if not (folder / FRAME[1]).is_file():
        return None
    facts, tensors = read(folder, FRAME, FORMAT, tensors=(folder / FRAME[0]).exists())
    return Frame(facts, tensors)


@dataclass(frozen=True, eq=False)
class ShardDone(Told):
    """What a call with `shard=` gives back: what was done, where, and how it becomes a result."""

    call: str
    """The name of the call."""
    folder: Path
    """The directory of the shard."""
    index: int
    """The number of the shard, from 0."""
    of: int
    """The number of shards."""
    chunks: int
    """How many it did, or found done."""
    of_chunks: int
    """How many there are in all shards."""

    def __repr__(self) -> str:
        idle = " There are fewer chunks than shards, so this shard has no chunk." if not self.chunks else ""
        return (
            f"Shard {self.index}/{self.of} of {self.call}: {self.chunks} of {self.of_chunks} chunks, in"
            f" {self.folder}.{idle} When all are done: interp merge DIR... --out DIR"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"call": self.call, "out": str(self.folder), "index": self.index, "of": self.of,
                "chunks": self.chunks, "of_chunks": self.of_chunks}  # fmt: skip


def part(folder: str | Path, call: str, shard: Shard) -> ShardDone:
    """What was done, from what is written down there and below."""
    found = [progress(plan.parent) for plan in Path(folder).rglob("plan.json")]
    done, of = (sum(pair[n] for pair in found if pair is not None) for n in (0, 1))
    return ShardDone(call, Path(folder), shard.index, shard.of, done, of)
