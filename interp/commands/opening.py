"""The model and the prompts that a command names, with one readable line where they cannot be had; what they take."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.commands.options import needed, note, say
from interp.cost import Cost, cost
from interp.hooks.errors import InputsError
from interp.hooks.sites import nearest
from interp.loading.named import opened
from interp.loading.task_named import SHIPPED, task_named
from interp.model import Model
from interp.reading import content
from interp.tasks.task import Task

MANY, FEW = 1000, 4
"""Prompts from which on it is said beforehand what they take, and how many of them it is judged by."""
SOON = 2.0
"""Seconds of work after which a terminal shows how far it is."""


def model_of(options: argparse.Namespace) -> Model:
    """The model by its name."""
    needed(options, "model")
    start = time.perf_counter()
    model = opened(options.model, device=options.device, dtype=options.dtype, offline=options.offline)
    note(f"loaded {options.model} in {time.perf_counter() - start:.1f} s")
    return model


def task_of(model: Model, options: argparse.Namespace, passes: int = 1) -> Task:
    """The task an option names, or the one a shipped model was made for; `passes` are those that it will be put to."""
    more = {} if options.corruption is None else {"corruption": options.corruption}

    def made(n: int | None) -> Task:
        return task_named(model, options.task, model_name=options.model, n=n, seed=options.seed, **more)

    announced(model, made, options.n, passes)
    return made(options.n)


def announced(model: Model, made: Callable[[int], Task], n: int | None, passes: int) -> None:
    """Say what very many prompts will take, before they are made."""
    if n is None or n <= MANY:
        return
    one, few = made(1), made(FEW)
    if len(few) == FEW * len(one):  # rows of a file, and probes, are as many as they are
        say(huge(cost(model, few.clean, passes), n * len(one), n))


def huge(tried: Cost, prompts: int, n: int) -> str:
    """A line about many prompts, from what a few of them took."""
    times = prompts / tried.prompts
    whole = replace(
        tried, prompts=prompts, megabytes=tried.megabytes * times, probe_seconds=tried.probe_seconds * times
    )
    return f"-n {n:,} is a lot. {whole}, judged by {tried.prompts} prompts. Ctrl-C stops it; -n 64 is a start."


@contextmanager
def counted(model: Model, total: int | None, what: str) -> Iterator[None]:
    """On a terminal, how many of the forward passes are done, their rate and the time left, after two seconds."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=" passes", delay=SOON, leave=False, disable=None) as bar:

        def one(*_: Any) -> None:
            bar.update(1)

        handle = None if bar.disable else model.module.register_forward_hook(one)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


def prompts_of(model: Model, options: argparse.Namespace, passes: int = 1) -> Any:
    """Inputs from --text, --file or --task."""
    if options.text or options.file:
        lines = [*(options.text or ()), *(_lines(options.file) if options.file else ())]
        return model.prepare(lines)
    short = str(options.model).removeprefix("zoo:")
    if options.task is None and not short.startswith(("planted-", *SHIPPED)):
        raise InputsError("no text was given: give --text, --file (one prompt a line) or --task.")
    return task_of(model, options, passes).clean


def _lines(path: str) -> list[str]:
    file = Path(path)
    if not file.is_file():
        near = nearest(file.name, (one.name for one in file.parent.iterdir())) if file.parent.is_dir() else ""
        raise InputsError(f"no file {file}: expected one prompt a line.{near}")
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
