"""A sweep saved chunk by chunk, so that a killed one continues and ends with the same bytes.

`plan.json` comes first, sealed: which sweep this is, its chunks and its choice of matrix products, fixed for good, and
by which code. Each finished chunk is a parquet file written under another name and renamed, next to its checksum (as
`sha256sum` writes it, `sha256sum -c` reads it); it is compared with that, and has to cover its chunk, before its
numbers are used. A chunk that could not be computed leaves a file that says why, until it is. The result follows when
all are there. Limits: the same bytes need the same machine, versions and number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.sealed import damaged, opened, parsed, sealed, understood, unsealed
from interp.kernels.errors import InterpError
from interp.provenance import code
from interp.saving import renamed

FORMAT = 2
PLAN = "plan.json"
SUM = ".sha256"
FAILED = ".failed"
Values = dict[str, Tensor]
"""By metric, [cell of the chunk, example]."""


class Journal:
    """The directory of one sweep."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with kept(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def known(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """The plan that is there already, if it is this sweep's."""
        path = self.folder / PLAN
        if not path.exists():
            return None
        plan = plan_of(path)
        mine = json.loads(json.dumps(dict(task)))
        other = [name for name in {**plan["task"], **mine} if plan["task"].get(name) != mine.get(name)]
        if other:
            name, theirs, ours = differing(other[0], plan["task"].get(other[0]), mine.get(other[0]))
            raise InterpError(
                f"{self.folder} holds another sweep: its {name} is {short(theirs)}, this one's is {short(ours)}."
                " Give another directory, or remove that one."
            )
        if plan["code"] not in (None, code()):
            raise InterpError(
                f"{self.folder} was begun by other code of interp, {_coded(plan['code'])}, and this is"
                f" {_coded(code())}: go on with that, or give another directory."
            )
        return plan

    def begin(self, task: Mapping[str, Any], chunks: Sequence[tuple[int, int]], product: str, turn: int = 0) -> None:
        """Fix the chunks, the choice of matrix products, and which shard's turn it is first."""
        plan = {"format": FORMAT, "task": dict(task), "chunks": list(map(list, chunks)), "product": product}
        plan |= {"turn": turn} if turn else {}
        with kept(self.folder):
            renamed(self.folder / PLAN, sealed({**plan, "code": code()}))

    def plan(self) -> dict[str, Any]:
        """What is planned here: task, chunks, product, code."""
        return plan_of(self.folder / PLAN)

    def must_cover(self, chunks: Sequence[tuple[int, int]], cells: int) -> None:
        """Raise where the chunks of the plan are not all the cells there are."""
        if (chunks[-1][1] if chunks else 0) != cells:
            raise damaged(self.folder / PLAN, f"its chunks do not cover the {cells} cells of this sweep")

    def chunk(self, low: int, high: int) -> Path:
        """The file of a chunk, which need not be there."""
        return self.folder / "chunks" / f"{low:06d}-{high:06d}.parquet"

    def failed(self, low: int, high: int, why: str) -> None:
        """Write down that a chunk could not be computed."""
        path = self.chunk(low, high).with_suffix(FAILED)
        with kept(self.folder):
            path.parent.mkdir(exist_ok=True)
            renamed(path, sealed({"cells": [low, high], "why": why}))

    def write(self, low: int, high: int, values: Values, floors: Mapping[str, float]) -> None:
        """One finished chunk: a row per metric, cell and example."""
        import pyarrow as arrow
        from pyarrow import parquet

        columns: dict[str, list[Any]] = {"metric": [], "cell": [], "example": [], "effect": []}
        for name, part in values.items():
            cells, examples = part.shape
            columns["metric"] += [name] * part.numel()
            columns["cell"] += [low + n for n in range(cells) for _ in range(examples)]
            columns["example"] += list(range(examples)) * cells
            columns["effect"] += part.double().flatten().tolist()
        table = arrow.table(columns).replace_schema_metadata({"floors": json.dumps(dict(floors))})
        path = self.chunk(low, high)
        sink = arrow.BufferOutputStream()
        parquet.write_table(table, sink)
        self.put(path, sink.getvalue().to_pybytes())

    def put(self, path: Path, data: bytes) -> None:
        """The bytes of a chunk's file, with their checksum."""
        with kept(self.folder):
            path.parent.mkdir(exist_ok=True)
            renamed(path.with_suffix(SUM), _sum(path, data))  # first: a chunk without it is not there yet
            renamed(path, data)
            path.with_suffix(FAILED).unlink(missing_ok=True)

    def read(
        self, low: int, high: int, wanted: Mapping[str, int] | None = None
    ) -> tuple[Values, dict[str, float]] | None:
        """A chunk that is finished; `wanted` says which metrics it must have, and how many examples of each."""
        path = self.chunk(low, high)
        if not path.exists():
            return None
        data, beside = path.read_bytes(), path.with_suffix(SUM)
        if not beside.exists() or beside.read_bytes() != _sum(path, data):
            raise InterpError(
                f"{path} is damaged or was changed: the checksum in {beside.name} does not fit it. Remove both files"
                " and make the same call again: it computes the chunk anew."
            )
        with understood(path):
            values, floors = _values(path, data, low, high)
        found = {name: part.shape[1] for name, part in values.items()}
        if wanted is not None and found != dict(wanted):
            raise damaged(path, f"it holds examples of metrics {found}, and this sweep has {dict(wanted)}")
        return values, floors


def _sum(path: Path, data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()


def _values(path: Path, data: bytes, low: int, high: int) -> tuple[Values, dict[str, float]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(arrow.BufferReader(data))
    except (arrow.ArrowException, OSError) as why:
        raise damaged(path, "it is no parquet file") from why
    floors = json.loads((table.schema.metadata or {})[b"floors"])
    values = {}
    for name, part in table.to_pandas().groupby("metric", sort=False):
        width = len(part) // (high - low)
        cells = [cell for cell in range(low, high) for _ in range(width)]
        if part["cell"].tolist() != cells or part["example"].tolist() != list(range(width)) * (high - low):
            raise damaged(path, f"it does not cover cells {low} to {high - 1} of {width} examples, each once")
        values[str(name)] = torch.tensor(part["effect"].to_numpy(), dtype=torch.float64).view(high - low, -1)
    return values, floors


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """While inside, a disk that takes no more is an error that says what there is to do."""
    try:
        yield
    except OSError as why:
        raise InterpError(
            f"{why.filename or folder} cannot be written: {why.strerror}. The work that was finished is kept. Make it"
            " possible to write there and make the same call again, which continues; or give another directory."
        ) from why


def plan_of(path: Path) -> dict[str, Any]:
    """What is planned: chunks that follow each other from the first cell on, of some task."""
    plan, _ = unsealed(path, FORMAT)
    with understood(path):
        chunks, task = [(int(low), int(high)) for low, high in plan["chunks"]], plan["task"]
        ends = [0, *(high for _, high in chunks)]
        if [low for low, _ in chunks] != ends[:-1] or any(low >= high for low, high in chunks):
            raise damaged(path, "its chunks do not follow each other from the first cell on")
        if not isinstance(plan["product"], str):
            raise damaged(path, "it names no choice of matrix products")
        if not isinstance(plan.get("code"), dict | None):
            raise damaged(path, "it does not say which code of interp began it")
        made = {"task": dict(task), "chunks": chunks, "product": plan["product"], "turn": int(plan.get("turn", 0))}
        return {**made, "code": plan.get("code")}


def planned(folder: str | Path) -> dict[str, Any]:
    """The task of a sweep, also of one that version 0.2 wrote."""
    path = Path(folder) / PLAN
    with understood(path):
        return dict(opened(path, parsed(path))[0]["task"])


def progress(folder: str | Path) -> tuple[int, int] | None:
    """How many chunks of a sweep are finished, of how many; None where the directory holds no sweep."""
    path = Path(folder) / PLAN
    if not path.exists():
        return None
    shards = {shard.stem for shard in (Path(folder) / "chunks").glob("*.parquet")}
    with understood(path):
        chunks = opened(path, parsed(path))[0]["chunks"]
        return sum(f"{low:06d}-{high:06d}" in shards for low, high in chunks), len(chunks)


def differing(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """What is not the same in two values, by its name inside them."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return name, a, b
    inner = next(key for key in {**a, **b} if a.get(key) != b.get(key))
    return differing(inner if name == "model" else f"{name} {inner}", a.get(inner), b.get(inner))


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _coded(known: Mapping[str, Any]) -> str:
    return f"version {known.get('interp')} ({known.get('sources')})"
