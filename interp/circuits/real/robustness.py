"""Prompts that are spoilt: tokens that both sides share changed for others, and letters swapped.

    tokens  in each row, one token that clean and corrupt share (not the first, not the last) becomes another token that
            some prompt shares
    typos   in each row's texts, two neighbouring letters of a word that both texts share are swapped; rows whose two
            texts no longer have the same number of tokens, or another one than the others, are left out

The answer may no longer be what the model gives: the gap is measured anew, and f is the share of that. Limits: texts
and ids; a picture is not changed here (`interp.vision.perturb` does).
"""

from __future__ import annotations

import random as python_random
import re
from dataclasses import replace

import torch

from interp.prompts.rows import Row
from interp.prompts.vocabulary import TaskError
from interp.tasks.task import Task

SHORT = 4
"""Words with fewer letters are left as they are."""


def tokens_changed(task: Task, *, seed: int) -> Task | None:
    """The task with one shared token of each row changed; None where rows share none."""
    clean, corrupt = task.clean, task.corrupt
    if clean.ids is None or any(row.image is not None for row in task.rows):
        return None
    shared = (clean.ids == corrupt.ids) & clean.valid
    known = sorted({int(one) for one in clean.ids[shared]})
    draw, rows = torch.Generator().manual_seed(seed), []
    for n, row in enumerate(task.rows):
        real = clean.valid[n].nonzero()[:, 0].tolist()
        places = [p for p in real[1:-1] if bool(shared[n, p])]
        if places and len(known) > 1:
            at = places[int(torch.randint(len(places), (1,), generator=draw))]
            other = known[int(torch.randint(len(known), (1,), generator=draw))]
            ids = [[other if p == at else int(x.ids[n, p]) for p in real] for x in (clean, corrupt)]
            rows.append(replace(row, clean=tuple(ids[0]), corrupt=tuple(ids[1]), positions={}))
    return _put(replace(task, chat=None), rows)  # the ids have the chat around them already


def misspelt(task: Task, *, seed: int) -> Task | None:
    """The task with a typo in each row; None where no row can have one."""
    draw, rows = python_random.Random(seed), []
    for row in task.rows:
        made = _typo(row, draw)
        if made is not None and _fits(task, made):
            rows.append(made)
    return _put(task, rows)


def _typo(row: Row, draw: python_random.Random) -> Row | None:
    if not isinstance(row.clean, str) or not isinstance(row.corrupt, str) or row.image is not None:
        return None
    said = {str(one).strip() for one in (*row.answers, *row.wrong)}
    both = [word for word in re.findall(rf"[A-Za-z]{{{SHORT},}}", row.clean)
            if re.search(rf"\b{word}\b", row.corrupt) and word not in said and word[1] != word[2]]  # fmt: skip
    if not both:
        return None
    word = draw.choice(both)
    wrong = word[0] + word[2] + word[1] + word[3:]
    clean, corrupt = (re.sub(rf"\b{word}\b", wrong, text) for text in (row.clean, row.corrupt))
    return replace(row, clean=clean, corrupt=corrupt, positions={})


def _fits(task: Task, row: Row) -> bool:
    """Whether the row can be put on the model: its two sides still line up."""
    try:
        replace(task, rows=(row,), recipe=None).on(task.model)  # type: ignore[arg-type]
    except TaskError:
        return False
    return True


def _put(task: Task, rows: list[Row]) -> Task | None:
    return None if not rows else replace(task, rows=tuple(rows), recipe=None).on(task.model)  # type: ignore[arg-type]
