"""A sweep written down chunk by chunk, so that one that was killed goes on where it was and ends with the same bytes.

`plan.json` comes first: which sweep this is, its chunks and its choice of matrix products, fixed for good. Each
finished chunk is a parquet shard written under another name and renamed. The result follows when all are there.
Limits: the same bytes need the same machine, versions and number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import InterpError
from interp.saving import renamed

FORMAT = 1
PLAN = "plan.json"
Values = dict[str, Tensor]
"""By metric, [cell of the chunk, example]."""


class Journal:
    """The directory of one sweep."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def known(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """The plan that is there already, if it is this sweep's."""
        path = self.folder / PLAN
        if not path.exists():
            return None
        plan: dict[str, Any] = json.loads(path.read_text())
        if plan.get("format") != FORMAT:
            raise InterpError(f"{path} was written in format {plan.get('format')}; this version reads {FORMAT}.")
        mine = json.loads(json.dumps(dict(task)))
        other = [name for name in {**plan["task"], **mine} if plan["task"].get(name) != mine.get(name)]
        if other:
            name, theirs, ours = _differing(other[0], plan["task"].get(other[0]), mine.get(other[0]))
            raise InterpError(
                f"{self.folder} holds another sweep: its {name} is {_short(theirs)}, this one's is {_short(ours)}."
                " Give another directory, or remove that one."
            )
        return plan

    def begin(self, task: Mapping[str, Any], chunks: Sequence[tuple[int, int]], product: str) -> None:
        """Fix the chunks and the choice of matrix products."""
        plan = {"format": FORMAT, "task": dict(task), "chunks": list(map(list, chunks)), "product": product}
        renamed(self.folder / PLAN, json.dumps(plan, indent=1).encode())

    def _shard(self, low: int, high: int) -> Path:
        return self.folder / "chunks" / f"{low:06d}-{high:06d}.parquet"

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
        path = self._shard(low, high)
        path.parent.mkdir(exist_ok=True)
        sink = arrow.BufferOutputStream()
        parquet.write_table(table, sink)
        renamed(path, sink.getvalue().to_pybytes())

    def read(self, low: int, high: int) -> tuple[Values, dict[str, float]] | None:
        """A chunk that is finished."""
        from pyarrow import parquet

        path = self._shard(low, high)
        if not path.exists():
            return None
        table = parquet.read_table(path)
        floors = json.loads((table.schema.metadata or {})[b"floors"])
        frame = table.to_pandas()
        values = {
            name: torch.tensor(part["effect"].to_numpy(), dtype=torch.float64).view(high - low, -1)
            for name, part in frame.groupby("metric", sort=False)
        }
        return values, floors


def progress(folder: str | Path) -> tuple[int, int] | None:
    """How many chunks of a sweep are finished, of how many; None where the directory holds no sweep."""
    path = Path(folder) / PLAN
    if not path.exists():
        return None
    chunks = json.loads(path.read_text())["chunks"]
    shards = {shard.stem for shard in (Path(folder) / "chunks").glob("*.parquet")}
    return sum(f"{low:06d}-{high:06d}" in shards for low, high in chunks), len(chunks)


def _differing(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """What is not the same in two values, by its name inside them."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return name, a, b
    inner = next(key for key in {**a, **b} if a.get(key) != b.get(key))
    return _differing(inner if name == "model" else f"{name} {inner}", a.get(inner), b.get(inner))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
