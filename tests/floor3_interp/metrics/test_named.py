"""What a metric is called on a page: what it computes, never where it lies in memory."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.metrics import LogitDifference
from interp.metrics.named import UNSEEN, metric_name, unit


def margin(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 0] - logits[:, -1, 1]


class Own:
    def __call__(self, logits: Tensor, inputs: Any) -> Tensor:
        return logits[:, -1, 0]


two = (lambda logits, x: logits[:, -1, 0], lambda logits, x: logits[:, -1, 1])
over = lambda logits, x: (  # noqa: E731
    logits[:, -1, 0] - logits[:, -1, 1]
)
long = lambda logits, x: logits[:, -1, 0] + logits[:, -1, 0] + logits[:, -1, 0] + logits[:, -1, 0] + x.batch  # noqa: E731


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        (margin, "margin"),
        (functools.partial(margin, inputs=None), "margin"),
        (Own(), "Own"),
        (two[0], "logits[:, -1, 0]"),
        (two[1], "logits[:, -1, 1]"),
        (over, "logits[:, -1, 0] - logits[:, -1, 1]"),
        (torch.sum, "sum"),
        (eval("lambda logits, x: logits[:, 0, 0]"), UNSEEN),  # noqa: S307
    ],
    ids=["function", "partial", "object", "first", "second", "lines", "in C", "no source"],
)
def test_a_metric_is_called_what_it_computes(metric: Any, wanted: str) -> None:
    assert metric_name(metric) == wanted
    assert " at 0x" not in metric_name(metric)


def test_a_long_lambda_is_shortened() -> None:
    assert metric_name(long).endswith("…")
    assert len(metric_name(long)) <= 60


def test_a_unit_is_the_shipped_metrics_name_or_the_whole_lambda() -> None:
    assert unit(metric_name(LogitDifference(((1,),), ((2,),)))) == "LogitDifference"
    assert unit("logits.softmax(-1)[:, -1, 0]") == "logits.softmax(-1)[:, -1, 0]"
    assert unit(None) == ""
