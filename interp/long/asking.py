"""Questions about passages that are before them: the prompt, where its passages are, and the weights on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.long.needles import ids_of
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


def asked_of(model: Model, questions: Any, passages: Sequence[str]) -> Task:
    if not isinstance(questions, Task):
        raise InputsError(f"expected a task, such as interp.tasks.needle(m), got {type(questions).__name__}.")
    if questions.chat is not None:
        raise InputsError("an empty question is put into plain prompts; this task is in a chat: take it without.")
    task = questions if questions.model is model else questions.on(model)
    for i, row in enumerate(task.rows):
        missing = [name for name in ("question", *passages) if name not in row.positions]
        if missing or not passages:
            raise InputsError(
                f"row {i} of {task.name!r} does not say where its {missing or 'passages'} are; it names"
                f" {', '.join(row.positions) or 'nothing'}: give it positions={{'question': (text, 1), 'needle': ...}}."
            )
    return task


def prompt_of(one: Task) -> tuple[Tensor, int]:
    """The ids of the prompt [1, length] without the answer, and where its question begins."""
    x = one.clean
    place = one.positions["question"].rows[0]
    assert place is not None
    end = x.continuation[0] if one.whole else x.length
    return ids_of(x)[:, :end], place[0]


def spans_of(one: Task, passages: Sequence[str], start: int, n: int) -> list[tuple[int, int]]:
    places = [one.positions[name].rows[0] for name in passages]
    spans = [place for place in places if place is not None and place[1] <= start]
    if len(spans) < len(places):
        raise InputsError(
            f"row {n}: a passage is after the question, and in a causal model the question cannot read it: put"
            " passages before the question."
        )
    return spans


def weights_on(model: Model, ids: Tensor, start: int) -> Tensor:
    """[head, key before the question]: mean weight over the rows from the question on."""
    rows = range(start, ids.shape[1])
    found = model.attention({"input_ids": ids}, stats=["received"], rows=rows)
    parts = [values["received"][0, :, :start] for values in found.values.values()]
    return torch.cat(parts).double().cpu() / len(rows)
