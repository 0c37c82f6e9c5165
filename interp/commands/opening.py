"""The model and the prompts that a command names, with one readable line where they cannot be had."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.commands.options import needed
from interp.hooks.errors import InputsError
from interp.loading.named import opened
from interp.model import Model
from interp.reading import content
from interp.reporting.steps.subject import SHIPPED, task_named
from interp.tasks.task import Task


def model_of(options: argparse.Namespace) -> Model:
    """The model by its name."""
    needed(options, "model")
    return opened(options.model, device=options.device, dtype=options.dtype, offline=options.offline)


def task_of(model: Model, options: argparse.Namespace) -> Task:
    """The task an option names, or the one a shipped model was made for."""
    more = {} if options.corruption is None else {"corruption": options.corruption}
    return task_named(model, options.task, model_name=options.model, n=options.n, seed=options.seed, **more)


def prompts_of(model: Model, options: argparse.Namespace) -> Any:
    """Inputs from --text, --file or --task."""
    if options.text or options.file:
        lines = [*(options.text or ()), *(_lines(options.file) if options.file else ())]
        return model.prepare(lines)
    short = str(options.model).removeprefix("zoo:")
    if options.task is None and not short.startswith(("planted-", *SHIPPED)):
        raise InputsError("nothing to read: give --text, --file (a prompt a line) or --task.")
    return task_of(model, options).clean


def _lines(path: str) -> list[str]:
    file = Path(path)
    if not file.is_file():
        raise InputsError(f"no file {file}: expected one prompt a line.")
    found = [line.removesuffix("\r") for line in content(file)[1].split("\n") if line.strip()]
    if not found:
        raise InputsError(f"{file} is empty: expected one prompt a line.")
    return found


def saved(result: Any, out: str | None) -> dict[str, Any]:
    """Save a result where it was asked for; its path and size."""
    if out is None:
        return {}
    folder = Path(result.save(out))
    return {"out": str(folder), "bytes": size_of(folder)}


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def where(found: dict[str, Any]) -> str:
    """A line that says what was written."""
    return f"\nwrote {found['out']} ({found['bytes'] / 1e6:.2f} MB)" if found else ""
