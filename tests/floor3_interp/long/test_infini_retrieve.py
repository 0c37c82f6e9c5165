"""Scores of weight on the answer, and of copies from anywhere, are those of their definitions, in float64."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

import interp
from interp.hooks.errors import InputsError
from interp.long.retrieval_heads import retrieval_heads
from interp.tasks.task import Task


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@cache
def notes() -> Task:
    return interp.tasks.needle(needle(), lengths=(40, 48), depths=(0.0, 0.6), n=1, distractors=2, whole=True)


@cache
def eager() -> Any:
    """The model itself, without us: whole patterns in float64."""
    module = copy.deepcopy(needle().module).double()
    module.set_attn_implementation("eager")
    return module


@cache
def rows_of(row: int) -> tuple[list[int], range, torch.Tensor]:
    """Ids, the answer's place in the needle, and the weights [head, step, key] of the rows that predict it."""
    one = notes().take([row])
    answer = list(one.answer_ids[0])
    ids = one.clean.kwargs["input_ids"][0].tolist()
    first, _ = one.positions["needle"].rows[0] or (0, 0)
    start = next(i for i in range(first, len(ids)) if ids[i : i + len(answer)] == answer)
    patterns = eager()(torch.tensor([ids]), output_attentions=True).attentions
    weights = torch.cat([layer[0, :, -len(answer) - 1 : -1] for layer in patterns]).detach()
    return ids, range(start, start + len(answer)), weights


def test_r2_is_the_weight_of_the_largest_keys_that_stand_in_the_answer() -> None:
    found = retrieval_heads(needle(), notes(), mode="r2")
    for row in (0, 3):
        _, span, weights = rows_of(row)
        wanted = []
        for head in weights:
            total = 0.0
            for step in head:
                order = sorted(range(len(step)), key=lambda j, p=step: -float(p[j]))  # type: ignore[misc]
                total += sum(float(step[j]) / len(span) for j in order[: len(span)] if j in span)
            wanted.append(total)
        assert found.scores[:, row].tolist() == pytest.approx(wanted, abs=1e-5)
    assert found.top(1)["site"].item() in {"L1.H0", "L1.H1", "L1.H2", "L1.H3"}
    assert set(found.to_frame()["method"]) == {"retrieval:r2"}


def test_copies_from_anywhere_count_wherever_the_word_stands() -> None:
    found = retrieval_heads(needle(), notes(), anywhere=True)
    for row in (0, 3):
        ids, span, weights = rows_of(row)
        answer = [ids[j] for j in span]
        copies = [
            [ids[int(step.argmax())] == word for step, word in zip(head, answer, strict=True)] for head in weights
        ]
        assert found.scores[:, row].tolist() == [sum(head) / len(answer) for head in copies]
    inside = retrieval_heads(needle(), notes())
    assert bool((found.scores >= inside.scores).all())
    assert found.meta["anywhere"] is True


def test_r2_and_anywhere_exclude_each_other() -> None:
    with pytest.raises(InputsError, match="r2 counts weight"):
        retrieval_heads(needle(), notes(), mode="r2", anywhere=True)
    with pytest.raises(InputsError, match="one of 'event', 'set', 'r2'"):
        retrieval_heads(needle(), notes(), mode="query")
