"""Reading back what was written to a directory, whatever it holds: a tape, or the effects of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

from interp.circuits.edge_scores import Edges
from interp.circuits.judged import Faithfulness
from interp.effects import Effects
from interp.hooks.tape import Tape, open_tape
from interp.journal import PLAN, progress
from interp.kernels.errors import InterpError
from interp.measures.table import NAMES as IMPORTANCE
from interp.measures.table import Importance
from interp.retrieval_scores import FILES as RETRIEVAL
from interp.retrieval_scores import RetrievalHeads


def open_directory(
    directory: str | Path,
) -> Tape | Effects | Edges | Faithfulness | RetrievalHeads | Importance | dict[str, Effects]:
    """A tape, effects, edges or faithfulness that were saved, or a finished sweep: by metric if it had several."""
    folder = Path(directory)
    if (folder / "tape.json").exists():
        return open_tape(folder)
    if (folder / "edges.json").exists():
        return Edges.load(folder)
    if (folder / "faithfulness.json").exists():
        return Faithfulness.load(folder)
    if (folder / RETRIEVAL[1]).exists():
        return RetrievalHeads.load(folder)
    if (folder / IMPORTANCE[1]).exists():
        return Importance.load(folder)
    if (folder / "run.json").exists():
        return Effects.load(folder)
    done = progress(folder)
    if done is None:
        raise InterpError(f"{folder} holds no tape and no effects: expected tape.json, run.json or {PLAN} in it.")
    names = list(json.loads((folder / PLAN).read_text())["task"]["metrics"])
    parts = [folder / f"metric{n}" for n in range(len(names))]
    if not all((part / "run.json").exists() for part in parts):
        raise InterpError(
            f"{folder} holds an unfinished sweep, {done[0]} of {done[1]} chunks: the same call with out= goes on."
        )
    return {name: Effects.load(part) for name, part in zip(names, parts, strict=True)}
