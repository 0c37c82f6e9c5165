"""Ids that are none of the logits, and answers for other numbers of rows, are refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import interp
from interp.metrics import KL, Accuracy, Logit, LogitDifference, LogProb, MetricError, Probability
from interp.zoo.families import tiny

pytestmark = pytest.mark.faults
MAKE: dict[str, Callable[[Any], Any]] = {
    "logit": lambda i: Logit(((i,), (3,))),
    "right": lambda i: LogitDifference(((3,), (i,)), ((4,), (5,))),
    "wrong": lambda i: LogitDifference(((3,), (3,)), ((4,), (i,))),
    "probability": lambda i: Probability(((3,), (i,))),
    "less": lambda i: Probability(((3,), (3,)), ((4,), (i,))),
    "logprob": lambda i: LogProb(((3,), (i,))),
    "accuracy": lambda i: Accuracy(((3,), (i,))),
    "among": lambda i: Accuracy(((3,), (3,)), among=((3, 4), (3, i))),
}


@pytest.mark.parametrize("name", MAKE)
def test_ids_outside_the_vocabulary(name: str) -> None:
    logits = torch.randn(2, 5, 11)
    assert MAKE[name](10)(logits, None).shape == (2,)
    with pytest.raises(MetricError, match=r"ids from 0 on in \w+, got -1 in row"):
        MAKE[name](-1)
    with pytest.raises(MetricError, match=r"ids below 11.*got 11"):
        MAKE[name](11)(logits, None)
    m = interp.attach(tiny("llama"))
    base = torch.arange(5, 23).view(2, 9)
    how = {"base": {"input_ids": base}, "source": {"input_ids": base + 1}, "sites": "L1.z"}
    with pytest.raises(interp.InterpError, match=r"\b1000\b"):
        interp.patch(m, **how, metric=MAKE[name](1000))


def test_answers_of_another_number_of_rows() -> None:
    m = interp.attach(tiny("llama"))
    base = torch.randint(5, 90, (32, 6))
    how: dict[str, Any] = {"base": {"input_ids": base}, "source": {"input_ids": base.flip(0)}}
    few = ((3,),) * 31
    for metric in (Logit(few), LogitDifference(few, few), Probability(few), LogProb(few), Accuracy(few),
                   KL(torch.zeros(31, 1, 96))):  # fmt: skip
        with pytest.raises(interp.InterpError, match=r"31.*32"):
            interp.patch(m, **how, sites="L1.z", metric=metric)
    for build in (lambda: Probability(few, ((3,),) * 32), lambda: Accuracy(few, among=((3,),) * 32),
                  lambda: LogitDifference(few, ((3,),) * 32)):  # fmt: skip
        with pytest.raises(MetricError, match="31 rows, got"):
            build()
    with pytest.raises(interp.InterpError, match=r"32 rows, got 31 labels"):
        interp.directions.das(m, **how, site="L1.H1.z", dim=2, labels=[3] * 31)
    for answers in ([3] * 31, [[3]] * 31):
        with pytest.raises(interp.InterpError, match=r"31.*32|32.*31"):
            interp.patching.lens(m, how["base"], answers=answers)
        with pytest.raises(interp.InterpError, match=r"31.*32|32.*31"):
            interp.patching.direct_effect(m, how["base"], answers=answers)


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_answers_of_a_call_are_ids_of_the_model(wrong: int) -> None:
    m = interp.attach(tiny("llama"))
    x = {"input_ids": torch.arange(5, 23).view(2, 9)}
    for call in (interp.patching.lens, interp.patching.direct_effect):
        with pytest.raises(interp.InterpError, match=rf"got {wrong}"):
            call(m, x, answers=[wrong, 3])


@pytest.mark.parametrize("make", [Logit, lambda a, **k: LogitDifference(a, a, **k), Probability, Accuracy])
def test_several_positions_where_one_is_read(make: Callable[..., Any]) -> None:
    logits = torch.randn(2, 5, 11)
    assert make(((3,), (4,)), positions=((1,), (2,)))(logits, None).shape == (2,)
    with pytest.raises(MetricError, match="one position for each row, got 2"):
        make(((3,), (4,)), positions=((1, 2), (2,)))(logits, None)
