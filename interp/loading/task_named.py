"""A task by name, with one readable line where it cannot be had: what was meant, or which model it was made for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.hooks.sites import nearest
from interp.kernels.errors import InterpError
from interp.prompts.vocabulary import TaskError
from interp.tasks.task import Task
from interp.zoo.catalog import DENOISER, entries

if TYPE_CHECKING:
    from interp.model import Model

SHIPPED = {"ioi": "ioi", "induction": "induction", "needle": "needle", "shapes": "shapes"}
"""The task a shipped model was trained for, by the start of its name."""


def task_named(
    model: Model, name: str | None, *, model_name: str = "", n: int | None = None, seed: int = 0, **options: Any
) -> Task:
    """A task by name: a generator of `interp.tasks`, a JSONL file, or for a planted model one of its probes.

    Without a name, the one a shipped model was made for.
    """
    from interp import tasks

    short = model_name.removeprefix("zoo:")
    if short.startswith("planted-") and (name is None or name not in tasks.__all__) and not _file(name):
        from interp.planted.probes import probe_task

        if wrong := [key for key, value in options.items() if value is not None]:
            raise TaskError(f"a probe of a planted model is one fixed row, without {wrong[0]}=.")
        return probe_task(short, name, model=model)
    if name is None:
        name = _made_for(model_name)
        if name is None:
            raise TaskError(f"say which task: one of {', '.join(tasks.__all__)}, or a .jsonl file of rows.")
    if _file(name):
        return Task.load(name, model)
    if name not in tasks.__all__:
        raise TaskError(
            f"no task {name!r}; there are {', '.join(tasks.__all__)}, or give a .jsonl file."
            f"{nearest(name, tasks.__all__)}"
        )
    given = {key: value for key, value in {"n": n, "seed": seed, **options}.items() if value is not None}
    return _made(getattr(tasks, name), name, model, model_name, given)


def _made(generate: Callable[..., Task], name: str, model: Model, model_name: str, given: dict[str, Any]) -> Task:
    unknown = [key for key in given if key not in inspect.signature(generate).parameters]
    if unknown:
        raise TaskError(f"the task {name!r} has no option {unknown[0]!r}; see interp.tasks.{name}.")
    try:
        return generate(model, **given)
    except InterpError as why:
        hint = "" if _serves(generate, model) else _other(name, model_name)
        if not hint:
            raise
        raise TaskError(f"{str(why).rstrip('.')}.{hint}") from why


def _serves(generate: Callable[..., Task], model: Model) -> bool:
    """Whether the model can be asked this at all, whatever the options."""
    try:
        generate(model, n=1)
    except InterpError:
        return False
    return True


def _other(name: str, model_name: str) -> str:
    """Which model a task is for, and what this model is for."""
    own = _made_for(model_name)
    fit = [f"zoo:{one.name}" for one in entries() if one.architecture != DENOISER and _made_for(one.name) == name]
    ours = f" {model_name} was made for --task {own}." if own is not None and own != name else ""
    return (f" The task {name!r} has models of its own: {', '.join(fit)}." if fit else "") + ours


def _made_for(model_name: str) -> str | None:
    """The task of a shipped model, by its whole name."""
    known = {name for one in entries() for name in (one.name, f"zoo:{one.name}")}
    short = model_name.removeprefix("zoo:")
    return next((task for start, task in SHIPPED.items() if short.startswith(start) and model_name in known), None)


def _file(name: str | None) -> bool:
    if name is None or not name.endswith(".jsonl"):
        return False
    file = Path(name)
    if not file.is_file():
        beside = nearest(file.name, (one.name for one in file.parent.iterdir())) if file.parent.is_dir() else ""
        raise InterpError(f"no file {name}: expected rows of a task, as Task.save writes them.{beside}")
    return True
