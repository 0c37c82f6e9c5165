"""The search against a Gaussian process written out, budgets that hold, and settings that are better than none."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.hooks.errors import InputsError
from interp.vision import search_pruning, token_importance
from interp.vision.tokens.proposals import LENGTH, NOISE, expected_improvement, posterior
from interp.vision.tokens.search import Space, kept_state


@cache
def asked() -> tuple[interp.Model, Any]:
    m = interp.load("zoo:shapes-lvlm")
    return m, interp.tasks.shapes(m, n=4, style="yes_no", split="heldout").clean


@cache
def found() -> Any:
    return search_pruning(*asked(), budget=0.4, layers=(0, 2), trials=5, start=3)


def test_the_process_is_the_textbooks() -> None:
    torch.manual_seed(0)
    tried, points, values = torch.rand(5, 2).double(), torch.rand(3, 2).double(), torch.rand(5).double()

    def k(a: Any, b: Any) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * LENGTH**2))

    gram = torch.tensor([[k(a, b) + NOISE * (i == j) for j, b in enumerate(tried)] for i, a in enumerate(tried)])
    y = (values - values.mean()) / values.std(correction=0)
    mean, sd = posterior(tried, values, points)
    for n, p in enumerate(points):
        row = torch.tensor([k(p, a) for a in tried]).double()
        inverse = torch.linalg.inv(gram.double())
        expected = float(row @ inverse @ y) * float(values.std(correction=0)) + float(values.mean())
        spread = math.sqrt(1 - float(row @ inverse @ row)) * float(values.std(correction=0))
        assert float(mean[n]) == pytest.approx(expected, abs=1e-5)
        assert float(sd[n]) == pytest.approx(spread, rel=1e-4)
    drawn = mean[0] + sd[0] * torch.randn(400_000).double()
    best = float(mean[0]) + 0.5 * float(sd[0])
    gain = float((drawn - best).clamp(min=0).mean())
    assert float(expected_improvement(mean, sd, best)[0]) == pytest.approx(gain, rel=0.02)


def test_every_trial_keeps_the_budget_and_its_value_is_the_cosine() -> None:
    m, x = asked()
    got = found()
    assert got.names == ("t", "cell", "retention_1")
    r = got.retention
    torch.testing.assert_close((r[:, 0] * 2 + r[:, 0] * r[:, 1] * 2) / 4, torch.full((5,), 0.4).double())
    t, cell, first = got.points[1].tolist()
    edits = token_importance(m, x, t=t).pruned([first, float(r[1, 1])], layers=(0, 2), cell=cell)
    site = "text.L3.resid_post"
    states = [m.run(x, record=site, edits=e)[site][:, -1].double() for e in ((), edits)]
    cosine = (states[0] * states[1]).sum(-1) / states[0].norm(dim=-1) / states[1].norm(dim=-1)
    assert got.values.shape == (5, 3)
    for value in got.values[1]:
        assert float((cosine - value).abs().min()) < 1e-6
    assert len(got.held_out) == len(got.plain) == 1
    again = search_pruning(m, x, budget=0.4, layers=(0, 2), trials=5, start=3)
    assert torch.equal(again.values, got.values)
    assert not m.handles()


def test_the_best_is_the_best_and_goes_on_to_other_inputs(tmp_path: Path) -> None:
    m, x = asked()
    got, at = found(), int(found().values.mean(1).argmax())
    assert got.best["t"] == float(got.points[at, 0])
    assert got.best["retention"] == tuple(got.retention[at].tolist())
    value = kept_state(m, x, got.pruned(m, x)).sort().values
    known = torch.cat([got.values[at], got.held_out]).sort().values
    torch.testing.assert_close(value, known, atol=1e-6, rtol=0)
    high = replace(got, points=got.points.index_fill(1, torch.tensor([0]), 99.0))
    assert high.pruned(m, x), "no picture has a patch that receives so much, and t is lowered"
    got.save(tmp_path)
    again = interp.open(tmp_path)
    assert repr(again) == repr(got)
    assert list(got.to_frame()["objective"]) == pytest.approx(got.values.mean(1).tolist())


def test_the_next_point_goes_to_where_values_are_high() -> None:
    space = Space({"t": (0.0, 30.0), "cell": (1.0, 5.0)}, (0,), 4, 0.5)
    top, random = torch.tensor([0.3, 0.8]).double(), torch.Generator().manual_seed(1)
    points = list(space.drawn(6, random))
    for _ in range(10):
        values = [-(one - top).square().sum()[None] for one in points]
        points.append(space.next(points, values, random))
    away = torch.stack([(one - top).norm() for one in points])
    assert float(away[6:].min()) < 0.05 < float(away[:6].min())
    assert float(away[-8:].median()) < float(away[:6].median())
    assert space.scaled(top).tolist() == pytest.approx([9.0, 4.2])


def test_another_objective_is_asked_once_a_trial() -> None:
    m, x = asked()
    calls: list[int] = []

    def one(model: interp.Model, inputs: Any, edits: Any) -> torch.Tensor:
        calls.append(len(edits))
        return torch.arange(inputs.batch).double() * len(calls)

    got = search_pruning(m, x, budget=0.5, trials=2, start=2, objective=one, search="random")
    assert len(calls) == 2 + 2
    assert got.names == ("t", "cell")
    torch.testing.assert_close(got.values[1], 2 * got.values[0])


def test_bad_input_is_refused() -> None:
    m, x = asked()
    for how, says in (
        ({"budget": 1.0}, "budget= is between"),
        ({"start": 9, "trials": 3}, "start= is 1 to trials"),
        ({"search": "grid"}, "'bayes' or 'random'"),
        ({"layers": (2, 0)}, "rising, from 0 to 3"),
        ({"layers": (3,)}, "cannot be had with stages at layers"),
        ({"ranges": {"nothing": (0.0, 1.0)}}, "ranges= are"),
        ({"held_out": 0.0}, "held_out= is a share"),
    ):
        with pytest.raises(InputsError, match=says):
            search_pruning(m, x, **how)
    with pytest.raises(InputsError, match="holds no image token"):
        search_pruning(m, m.prepare(["is there a star ?"]))
