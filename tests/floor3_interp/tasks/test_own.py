"""Your own prompts: `interp.compare`, and metrics that hold words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import interp
from interp.metrics import MetricError
from interp.prompts.vocabulary import TaskError

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


@pytest.fixture(scope="module")
def m() -> Any:
    return interp.load("zoo:ioi")


def test_two_prompts_and_two_words_are_a_task(m: Any) -> None:
    task = interp.compare(m, CLEAN, CORRUPT, " Mary", " John")
    logits = m.run(task.clean)["logits"][0, -1]
    mary, john = (m.tokenizer.convert_tokens_to_ids(m.tokenizer.tokenize(word))[0] for word in (" Mary", " John"))
    assert torch.equal(task.metric(m.run(task.clean)["logits"], task.clean), (logits[mary] - logits[john])[None])
    found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
    assert float(found.values.abs().max()) > 0.1


def test_one_answer_stands_for_every_row_and_lists_have_one_a_row(m: Any) -> None:
    both = interp.compare(m, [CLEAN, CLEAN], [CORRUPT, CORRUPT], " Mary", [" John", [" John", " Tom"]])
    assert both.answers == ((" Mary",), (" Mary",))
    assert both.wrong == ((" John",), (" John", " Tom"))
    assert interp.compare(m, CLEAN, CORRUPT, " Mary").score == "logprob"


def test_pictures_are_shown_to_both_unless_others_are_given() -> None:
    m = interp.load("zoo:shapes-lvlm")
    shapes = interp.tasks.shapes(m, n=1)
    row = shapes.rows[0]
    other = Image.new("RGB", row.image.size)
    same = interp.compare(m, row.clean, row.clean, list(row.answers), list(row.wrong), images=row.image)
    assert same.rows[0].corrupt_image is row.image
    changed = interp.compare(
        m, row.clean, row.clean, list(row.answers), list(row.wrong), images=[row.image], corrupt_images=[other]
    )
    assert not torch.equal(changed.clean.kwargs["pixel_values"], changed.corrupt.kwargs["pixel_values"])
    with pytest.raises(TaskError, match="goes with images="):
        interp.compare(m, row.clean, row.clean, list(row.answers), corrupt_images=other)


@pytest.mark.parametrize(
    ("clean", "corrupt", "answer", "wrong", "said"),
    [
        (CLEAN, [CORRUPT, CORRUPT], " Mary", " John", "as many corrupt prompts as clean ones .1., got 2"),
        (CLEAN, "When Mary", " Mary", " John", "equal length"),
        (CLEAN, CORRUPT, [" Mary", " Tom"], " John", "one entry for each of 1 rows; got 2"),
        (CLEAN, CORRUPT, "no such word", " John", "token"),
        ([], [], " Mary", " John", "at least one text"),
        (CLEAN, "", " Mary", " John", "expected texts in corrupt"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(m: Any, clean: Any, corrupt: Any, answer: Any, wrong: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        interp.compare(m, clean, corrupt, answer, wrong)


def test_a_metric_takes_words_of_every_row(m: Any) -> None:
    task = interp.compare(m, [CLEAN, CORRUPT], [CORRUPT, CLEAN], " Mary", " John")
    pair = {"base": task.corrupt, "source": task.clean, "sites": "L*.H*.z"}
    expected = interp.patch(m, metric=task.metric, **pair).values
    in_words = interp.metrics.LogitDifference(" Mary", " John")
    assert torch.equal(interp.patch(m, metric=in_words, **pair).values, expected)
    assert torch.equal(interp.patch(m, metric={"a": in_words}, **pair)["a"].values, expected)
    a_row_each = interp.metrics.LogitDifference([" Mary", " Mary"], [[" John"], [" John"]])
    assert torch.equal(interp.patch(m, metric=a_row_each, **pair).values, expected)
    by_id = interp.metrics.LogitDifference(*(task.answer_ids[0][0], task.wrong_ids[0][0]))
    assert torch.equal(interp.patch(m, metric=by_id, **pair).values, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, t, metric: interp.attribute(m, base=t.corrupt, source=t.clean, metric=metric, sites="L*.H*.z"),
        lambda m, t, metric: interp.importance(m, t.clean, metric=metric, by=["gradient"]),
        lambda m, t, metric: interp.edges(m, base=t.corrupt, source=t.clean, metric=metric),
        lambda m, t, metric: interp.relevance(m, t.clean, metric=metric),
        lambda m, t, metric: interp.patching.direct_effect(m, t.clean, metric=metric),
        lambda m, t, metric: interp.head(m, "L1.H0", t.clean, metric=metric),
        lambda m, t, metric: interp.heads.gates(m, t.clean, loss=metric, steps=2, seeds=1),
        lambda m, t, metric: interp.sink.sink_knockout(
            m, t.clean, metric=metric, sinks=interp.sinks(m, t.clean), draws=2
        ),
        lambda m, t, metric: interp.patching.knockout(m, t.clean, metric=metric, edges=[("first", "last")]),
    ],
)  # fmt: skip
def test_every_call_with_a_metric_takes_words(m: Any, call: Any) -> None:
    call(m, interp.compare(m, CLEAN, CORRUPT, " Mary", " John"), interp.metrics.LogitDifference(" Mary", " John"))


@pytest.mark.parametrize("metric", ["logit_diff", [126], 3.5])
def test_what_is_no_metric_is_refused_with_what_would_be_one(m: Any, metric: Any) -> None:
    with pytest.raises(MetricError, match="LogitDifference"):
        interp.patch(m, base=CORRUPT, source=CLEAN, metric=metric, sites="L*.H*.z")


def test_words_without_a_model_say_where_to_get_ids(m: Any) -> None:
    metric = interp.metrics.Logit(" Mary")
    with pytest.raises(MetricError, match=r"interp\.metrics\.on"):
        metric(m.run(CLEAN)["logits"], None)
    assert interp.metrics.on(m, metric)(m.run(CLEAN)["logits"], None).shape == (1,)


@pytest.mark.parametrize("given", ["", 2.5, [None], {"a": 1}, True])
def test_answers_are_ids_or_words(given: Any) -> None:
    with pytest.raises(MetricError, match="answers"):
        interp.metrics.Logit(given)


def test_a_forced_answer_has_a_row_each() -> None:
    with pytest.raises(MetricError, match="one entry for each row"):
        interp.metrics.LogProb(3, forced=True)
