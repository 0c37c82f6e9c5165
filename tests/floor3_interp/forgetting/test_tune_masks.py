"""Tuned masks: the dropped gradient number by number, and heads whose part in a task is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import forgetful as f
import pytest
import torch
from torch import Tensor

from interp.forgetting import tune_masks
from interp.forgetting.tune_masks import dropped
from interp.kernels.errors import InterpError
from interp.results.gates import Gates


@pytest.mark.parametrize("dropout", [1.0, 0.3])
def test_a_gradient_is_dropped_by_how_far_the_other_one_is_against_it(dropout: float) -> None:
    task, general = torch.tensor([1.0, 1.0, -2.0, 0.5, 0.0]), torch.tensor([3.0, -3.0, 0.5, -0.5, 1.0])
    u = torch.tensor([0.99, 0.01, 0.79, 0.51, 0.2])
    found = dropped(task, general, dropout, u)
    for n in range(5):
        g, h = float(task[n]), float(general[n])
        sign = (g > 0) - (g < 0)
        p = (sign * (g + h) / (abs(g) + abs(h)) + 1) / 2  # 1, 0.25, 0.8, 0.5, 0.5
        assert float(found[n]) == pytest.approx(g if p > float(u[n]) else (1 - dropout) * g)


def against(logits: Tensor, inputs: Any) -> Tensor:
    """What falls as class 0 is no longer said."""
    return f.margin(logits, inputs)


HOW: dict[str, Any] = {"loss": against, "heads": "L0.H*", "steps": 8, "seeds": 2, "rate": 2e-3}


@cache
def tuned() -> Gates:
    """Class 0 unlearnt, the others kept."""
    return tune_masks(f.knows(), f.asked(0), general=f.asked(1, 2, 3), **HOW)


def test_a_class_is_masked_out_and_the_rest_is_kept() -> None:
    m, found = f.knows(), tuned()
    kept = found.kept()
    assert not bool(kept[found.sites.index(f"L0.H{f.ALONE}")])
    assert bool(kept[found.sites.index(f"L0.H{f.REST}")])
    assert f.says(m, 1, 2, 3, edits=found.edits()) == [1, 2, 3]
    assert abs(f.margin(m.run(f.asked(0), edits=found.edits())["logits"], None).item()) < 0.5


def test_nulls_stay_open_and_the_curve_is_kept() -> None:
    found = tuned()
    assert bool(found.kept()[found.sites.index("L0.H0")])
    assert {"seed", "step", "loss", "cost", "open"} == set(found.training().columns)
    assert found.meta["kind"] == "tuned masks"


@pytest.mark.parametrize(
    ("how", "said"), [({"dropout": 1.5}, "0 to 1"), ({"steps": 0}, "at least 1"), ({"rate": 0.0}, "above 0")]
)
def test_what_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said):
        tune_masks(f.knows(), f.asked(0), **{**HOW, **how})
