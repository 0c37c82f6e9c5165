"""Metrics against their definitions, written out in float64 loops."""

from __future__ import annotations

import math

import pytest
import torch

from interp.metrics.ids import MetricError, ids
from interp.metrics.shipped import (
    KL,
    Accuracy,
    Logit,
    LogitDifference,
    LogProb,
    Probability,
    RecoveredFraction,
    narrow,
    places,
)

LENGTHS = (3, 6, 5)
VOCABULARY = 11


@pytest.fixture
def logits() -> torch.Tensor:
    """Three rows, right-padded to six; the padding would show."""
    out = torch.randn(3, 6, VOCABULARY) * 3
    for row, length in enumerate(LENGTHS):
        out[row, length:] = torch.nan
    return out


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in LENGTHS])
    return {"attention_mask": mask, "input_ids": torch.arange(18).reshape(3, 6) % VOCABULARY}


def last(logits: torch.Tensor, row: int) -> list[float]:
    return logits[row, LENGTHS[row] - 1].double().tolist()


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def left_padded(logits: torch.Tensor, inputs: dict[str, torch.Tensor]):
    """The same rows with the padding on the other side."""
    moved = [torch.roll(x, 6 - n, 0) for x, n in zip(logits, LENGTHS, strict=True)]
    masks = [torch.roll(x, 6 - n, 0) for x, n in zip(inputs["attention_mask"], LENGTHS, strict=True)]
    tokens = [torch.roll(x, 6 - n, 0) for x, n in zip(inputs["input_ids"], LENGTHS, strict=True)]
    return torch.stack(moved), {"attention_mask": torch.stack(masks), "input_ids": torch.stack(tokens)}


ANSWERS, WRONG = ((1,), (2, 3), (4,)), ((5, 6), (7,), (1,))


def test_logit_difference(logits, inputs):
    got = LogitDifference(ANSWERS, WRONG)(logits, inputs)
    for row, value in enumerate(got.tolist()):
        x = last(logits, row)
        right = sum(x[i] for i in ANSWERS[row]) / len(ANSWERS[row])
        wrong = sum(x[i] for i in WRONG[row]) / len(WRONG[row])
        assert value == pytest.approx(right - wrong, abs=1e-5)


def test_logit_is_the_mean_of_the_right_ones(logits, inputs):
    got = Logit(ANSWERS)(logits, inputs)
    for row, value in enumerate(got.tolist()):
        assert value == pytest.approx(sum(last(logits, row)[i] for i in ANSWERS[row]) / len(ANSWERS[row]), abs=1e-5)


def test_probability_is_a_sum_less_a_sum(logits, inputs):
    alone, against = Probability(ANSWERS)(logits, inputs), Probability(ANSWERS, WRONG)(logits, inputs)
    for row in range(3):
        p = softmax(last(logits, row))
        right, wrong = sum(p[i] for i in ANSWERS[row]), sum(p[i] for i in WRONG[row])
        assert alone[row].item() == pytest.approx(right, abs=1e-6)
        assert against[row].item() == pytest.approx(right - wrong, abs=1e-6)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_log_probability_of_several_tokens_is_teacher_forced(logits, inputs, reduce):
    lengths = (1, 3, 2)
    targets = tuple(
        tuple(inputs["input_ids"][row, n - t : n].tolist())
        for row, (n, t) in enumerate(zip(LENGTHS, lengths, strict=True))
    )
    got = LogProb(targets, reduce=reduce, forced=True)(logits, inputs)
    for row, (n, t) in enumerate(zip(LENGTHS, lengths, strict=True)):
        each = [math.log(softmax(logits[row, n - t + k - 1].double().tolist())[targets[row][k]]) for k in range(t)]
        assert got[row].item() == pytest.approx(sum(each) / (t if reduce == "mean" else 1), abs=1e-5)


def test_log_probability_of_one_token_reads_the_last_position(logits, inputs):
    got = LogProb(((1,), (2,), (4,)))(logits, inputs)
    for row, token in enumerate((1, 2, 4)):
        assert got[row].item() == pytest.approx(math.log(softmax(last(logits, row))[token]), abs=1e-5)


def test_divergence_is_summed_over_the_vocabulary_and_negative_by_default(logits, inputs):
    run = logits + torch.randn_like(logits)
    metric = KL.to(logits, inputs)
    got = metric(run, inputs)
    for row in range(3):
        p, q = softmax(last(logits, row)), softmax(last(run, row))
        wanted = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert got[row].item() == pytest.approx(-wanted, abs=1e-5)
        assert KL.to(logits, inputs, negate=False)(run, inputs)[row].item() == pytest.approx(wanted, abs=1e-5)
    assert metric(logits, inputs).abs().max() < 1e-6


def test_divergence_over_several_positions_is_their_mean(logits, inputs):
    run = logits + torch.randn_like(logits)
    whole = KL.to(logits, inputs, positions=((-1, -2), (-1,), (0,)))(run, inputs)
    first = KL.to(logits, inputs, positions=((-1,), (-1,), (0,)))(run, inputs)
    second = KL.to(logits, inputs, positions=((-2,), (-1,), (0,)))(run, inputs)
    assert whole[0].item() == pytest.approx((first[0].item() + second[0].item()) / 2, abs=1e-6)
    assert torch.allclose(whole[1:], first[1:])


def test_accuracy_counts_a_tie_as_wrong(logits, inputs):
    top = tuple((int(torch.tensor(last(logits, row)).argmax()),) for row in range(3))
    assert Accuracy(top)(logits, inputs).tolist() == [1.0, 1.0, 1.0]
    flat = torch.zeros_like(logits)
    assert Accuracy(top)(flat, inputs).tolist() == [0.0, 0.0, 0.0]


def test_accuracy_among_choices_looks_at_no_other_column(logits, inputs):
    metric = Accuracy(((1,), (2,), (4,)), among=((1, 2), (2, 3), (4, 5)))
    assert metric.columns == (1, 2, 3, 4, 5)
    for row, (right, other) in enumerate(((1, 2), (2, 3), (4, 5))):
        x = last(logits, row)
        assert metric(logits, inputs)[row].item() == float(x[right] > x[other])


def test_recovered_fraction_takes_means_first_and_is_never_clipped(logits, inputs):
    inner = LogitDifference(ANSWERS, WRONG)
    base, source = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([2.0, 4.0, 0.0])
    scaled = RecoveredFraction.between(inner, base=base, source=source)
    assert torch.allclose(scaled(logits, inputs), inner(logits, inputs) - 1.0)
    assert torch.equal(scaled.score(narrow(logits, inputs, scaled)), scaled(logits, inputs))
    with pytest.raises(MetricError, match="no scale"):
        RecoveredFraction.between(inner, base=base, source=base)


METRICS = [
    LogitDifference(ANSWERS, WRONG),
    Logit(ANSWERS),
    Probability(ANSWERS, WRONG),
    LogProb(((1,), (2,), (4,))),
    Accuracy(ANSWERS, among=WRONG),
    Accuracy(ANSWERS),
    RecoveredFraction(LogitDifference(ANSWERS, WRONG), 0.0, 2.0),
    KL(torch.randn(3, 1, VOCABULARY, generator=torch.Generator().manual_seed(3))),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: type(m).__name__)
def test_what_a_metric_says_it_reads_is_all_it_reads(metric, logits, inputs):
    """Everything outside the declared cells is made NaN; the answer stays, and engines may compute those cells only."""
    wanted = metric(logits, inputs)
    hidden = torch.full_like(logits, torch.nan)
    columns = list(range(VOCABULARY)) if metric.columns is None else list(metric.columns)
    mask = inputs["attention_mask"].bool()
    for row, at in enumerate(places(metric.positions, mask).tolist()):
        for place in at:
            hidden[row, place, columns] = logits[row, place, columns]
    assert torch.equal(metric(hidden, inputs), wanted)
    assert torch.equal(metric.score(narrow(logits, inputs, metric)), wanted)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: type(m).__name__)
def test_rows_can_be_taken_in_any_order_and_twice(metric, logits, inputs):
    rows = [2, 0, 2]
    some = {name: value[rows] for name, value in inputs.items()}
    assert torch.equal(metric.take(rows)(logits[rows], some), metric(logits, inputs)[rows])


@pytest.mark.parametrize(
    "metric", [*METRICS, LogProb(((2,), (10, 0), (5,)), forced=True)], ids=lambda m: type(m).__name__
)
def test_the_side_of_the_padding_does_not_matter(metric, logits, inputs):
    moved, turned = left_padded(logits, inputs)
    torch.testing.assert_close(metric(moved, turned), metric(logits, inputs))


def test_half_precision_is_widened_before_it_is_summed(inputs):
    logits = torch.zeros(1, 1, 50_000, dtype=torch.bfloat16)
    metric = LogProb(((7,),))
    assert metric(logits, None).dtype == torch.float32
    assert metric(logits, None).item() == pytest.approx(-math.log(50_000), abs=1e-4)


def test_class_logits_have_no_positions():
    logits = torch.tensor([[1.0, 4.0, 2.0]])
    assert LogitDifference(((1,),), ((2,),))(logits, {"pixel_values": torch.zeros(1)}).tolist() == [2.0]


def test_metrics_are_values():
    assert LogitDifference(ANSWERS, WRONG) == LogitDifference(ANSWERS, WRONG)
    assert hash(LogProb(((1,),))) != hash(LogProb(((2,),)))
    assert ids(torch.tensor([[1, -100], [2, 3]])) == ((1,), (2, 3))
    assert ids([4, 5]) == ((4,), (5,))


def test_wrong_questions_are_refused(logits, inputs):
    with pytest.raises(MetricError, match="forced=True"):
        LogProb(((1, 2), (3,), (4,)))
    with pytest.raises(MetricError, match="end with its answer"):
        LogProb(((9,), (9,), (9,)), forced=True)(logits, inputs)
    with pytest.raises(MetricError, match=r"take\(rows\)"):
        LogitDifference(((1,),), ((2,),))(logits, inputs)
    with pytest.raises(MetricError, match="none in row 1"):
        LogitDifference(((1,), ()), ((2,), (3,)))
    with pytest.raises(MetricError, match="rows and 6 positions"):
        LogitDifference(ANSWERS, WRONG)(logits[:, :4], inputs)
    with pytest.raises(MetricError, match="before the end"):
        KL.to(logits, inputs, positions=((5,), (0,), (0,)))
