"""Needle tasks as methods read them: fitted to a model, in batches of one length, with the answer's place known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Tower
from interp.hooks.drive.tail import last_tower
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import heads_at
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

ALIKE = 0.9
"""Without the answer word for word in the needle, the first stretch that has more than this share of its tokens."""


def attention_sites(model: Model) -> list[Site]:
    """The self-attention layers of the tower that reads the text and answers."""
    tower = _reader(model)
    return [Site(spelled(model.anatomy, tower), n.index, "attention") for n in tower.layers if n.kind == "self"]


def head_names(model: Model, sites: list[Site]) -> tuple[str, ...]:
    """Every head of these layers, "L0.H0"."""
    return tuple(name for s in sites for name in heads_at(s, range(model.anatomy.layer(s).heads)))


def _reader(model: Model) -> Tower:
    tower = last_tower(model.ready(), None)
    if tower.bidirectional or tower.name == "decoder":
        raise ModelError(
            f"retrieval heads look back from an answer into the text before it; {type(model.module).__name__} answers"
            f" from its tower {tower.name!r}, which does not read that text: use a decoder-only language model."
        )
    return tower


def fitted(model: Model, needles: Any) -> Task:
    """The task on this model; refused where a whole answer or a needle's place is not known."""
    _reader(model)
    task = whole_needles(needles)
    return placed(task if task.model is model else task.on(model))


def whole_needles(needles: Any) -> Task:
    """The task; refused where its answers are not whole, or it is not of text."""
    if not isinstance(needles, Task):
        raise InputsError(f"expected a task, such as interp.tasks.needle(m, whole=True), got {type(needles).__name__}.")
    if not needles.whole:
        raise InputsError("retrieval heads are scored over the whole answer: make the task with whole=True.")
    if any(row.image is not None for row in needles.rows):
        raise InputsError("these needles have pictures; retrieval heads are defined on tokens of text.")
    return needles


def placed(task: Task) -> Task:
    """The task; refused where it does not say where the needles are."""
    missing = [i for i, row in enumerate(task.rows) if "needle" not in row.positions]
    if missing:
        raise InputsError(
            f"row {missing[0]} of {task.name!r} does not say where its needle is: give it positions={{'needle': (text,"
            " 1)}."
        )
    return task


def alike(task: Task, batch: int) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of one length and one length of answer, and their ids [row, token]: nothing in them is padding."""
    if batch < 1:
        raise InputsError(f"batch= is how many rows are read at once, at least 1; got {batch}.")
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, length in enumerate(task.clean.valid.sum(1).tolist()):
        groups[length, len(task.answer_ids[row])].append(row)
    ids, valid = ids_of(task.clean), task.clean.valid
    for rows in groups.values():
        for some in (rows[start : start + batch] for start in range(0, len(rows), batch)):
            yield some, torch.stack([ids[row][valid[row]] for row in some])


def ids_of(x: Inputs) -> Tensor:
    """The token ids, which inputs of text have."""
    assert x.ids is not None
    return x.ids


def answer_span(task: Task, row: int) -> range:
    """Where in a row without its padding the answer is in the needle: word for word, or the first stretch that is
    nearly the same tokens."""
    place, valid = task.positions["needle"].rows[row], task.clean.valid[row]
    assert place is not None
    first = int(valid.int().argmax())
    answer, ids = list(task.answer_ids[row]), ids_of(task.clean)[row][valid].tolist()
    windows = [range(i, i + len(answer)) for i in range(place[0] - first, place[1] - first - len(answer) + 1)]
    exact = [w for w in windows if ids[w.start : w.stop] == answer]
    near = [w for w in windows if len(set(answer) & {ids[i] for i in w}) > ALIKE * len(set(answer))]
    if not exact and not near:
        raise InputsError(
            f"the answer {task.answers[row][0]!r} of row {row} is not part of its needle as tokens of this model, so"
            " no head can copy it from there."
        )
    return (exact or near)[0]
