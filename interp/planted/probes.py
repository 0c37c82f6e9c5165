"""The probes of a planted model as tasks, so that methods are tested on them as on any other question."""

from __future__ import annotations

from interp.planted import key
from interp.planted.answers import Picture, Probe
from interp.planted.pictures import draw
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host
from interp.tasks.task import Task


def probe_task(name: str, probe: str | None = None, *, model: Host | None = None) -> Task:
    """One probe (the first unless named) of `planted-...` as a task of one row; its heads are in the meta data."""
    answers = key(name.removeprefix("zoo:"))
    chosen = answers.probes[0] if probe is None else answers.probe(probe)
    task = Task(f"{answers.model} {chosen.name}", (_row(chosen),))
    return task if model is None else task.on(model)


def _row(probe: Probe) -> Row:
    return Row(
        probe.clean,
        probe.corrupt,
        (f" {probe.answer}",),
        (f" {probe.wrong}",),
        {},
        {"heads": list(probe.heads)},
        _image(probe.clean_picture),
        _image(probe.corrupt_picture),
    )


def _image(picture: Picture | None) -> object:
    return None if picture is None else draw(picture)
