"""The readout on weights set by hand, where every figure is known; rules against loops; interp's run against both."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import pytest
import torch
from house import ROOT
from torch import Tensor


@cache
def script() -> Any:
    path = ROOT / "experiments" / "icl_regression.py"
    spec = importlib.util.spec_from_file_location("icl_regression", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(omega: list[float], mu: list[float]) -> Any:
    """KQ = w I on x and OV = u from y to the answer, split over the matrices in a way the readout must not see."""
    attn = script().Attention(len(omega)).requires_grad_(False)
    for side in (attn.q, attn.k, attn.v, attn.o):
        side.weight.zero_()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    for h, (w, u) in enumerate(zip(omega, mu, strict=True)):
        here, eye = slice(6 * h, 6 * h + 6), torch.eye(6)
        eye[5, 5] = 0
        attn.q.weight[here] = turn @ eye * math.sqrt(6) * w
        attn.k.weight[here] = turn @ eye
        attn.v.weight[here] = turn[:, 5:] * torch.eye(6)[5]
        attn.o.weight[5, here] = turn[:, 5] * u
    return attn


def test_the_readout_of_weights_set_by_hand() -> None:
    m = script()
    kq, ov = m.circuits(by_hand([0.2, -0.2, 0.001], [2.0, -2.0, 0.0]))
    found = m.readout(kq, ov)
    assert found["omega"] == pytest.approx([0.2, -0.2, 0.001], abs=1e-6)
    assert found["mu"] == pytest.approx([2.0, -2.0, 0.0], abs=1e-6)
    assert found["share"] == pytest.approx([0.5, 0.5, 0], abs=1e-6)
    assert found["working_heads"] == 2
    assert found["eta"] == pytest.approx(0.8, abs=1e-6)
    for name in ("spread_of_omega", "sum_of_mu"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    for name in ("away_from_diagonal", "y_entries_of_kq", "x_entries_of_ov"):
        assert found[name][:2] == pytest.approx([0, 0], abs=1e-6)
    assert found["signs_agree"]


def test_what_is_wrong_with_weights_shows_in_its_own_figure() -> None:
    m = script()
    kq, ov = m.circuits(by_hand([0.3, 0.1], [1.0, 1.0]))
    kq[0, 0, 1] += 0.3
    kq[1, 5, 2] += 0.1
    ov[0, 0] += 1.0
    found = m.readout(kq, ov)
    assert found["away_from_diagonal"] == pytest.approx([math.sqrt(1 / 6), 0], abs=1e-6)
    assert found["y_entries_of_kq"] == pytest.approx([0, math.sqrt(1 / 5)], abs=1e-6)
    assert found["x_entries_of_ov"] == pytest.approx([math.sqrt(1 / 2), 0], abs=1e-6)
    assert found["sum_of_mu"] == pytest.approx(1)
    assert found["spread_of_omega"] == pytest.approx(0.5)
    assert not m.readout(kq * torch.tensor([1.0, -1.0])[:, None, None], ov)["signs_agree"]


def test_rules_are_their_sums() -> None:
    m = script()
    z, _ = m.tasks(3, torch.Generator().manual_seed(4), length=7)
    for b in range(3):
        x, y, query = z[b, :-1, :5].double(), z[b, :-1, 5].double(), z[b, -1, :5].double()
        mean = float(y.mean())
        debiased = 0.5 / 7 * sum(float((y[i] - mean) * (x[i] @ query)) for i in range(7))
        plain = 0.5 / 7 * sum(float(y[i] * (x[i] @ query)) for i in range(7))
        assert float(m.debiased(z, 0.5)[b]) == pytest.approx(debiased, abs=1e-5)
        assert float(m.descent(z, 0.5)[b]) == pytest.approx(plain, abs=1e-5)
        gram = sum(torch.outer(x[i], x[i]) for i in range(7)) + 0.5 * torch.eye(5)
        want = torch.linalg.solve(gram, sum(y[i] * x[i] for i in range(7))) @ query
        assert float(m.ridge(z)[b]) == pytest.approx(float(want), abs=1e-5)


def test_the_model_set_by_hand_is_the_reduced_model_and_nearly_debiased_descent() -> None:
    m = script()
    attn = by_hand([0.05, -0.05], [8.0, -8.0])
    z, _ = m.tasks(50, torch.Generator().manual_seed(5))
    model = m.predicted(attn, z)
    torch.testing.assert_close(model, m.reduced(z, torch.tensor([0.05, -0.05]), torch.tensor([8.0, -8.0])))
    assert float((model - m.debiased(z, 0.8)).square().mean() / model.square().mean()) < 1e-3
    whole: Tensor = m.Regressor(2, z.flatten(0, 1))
    whole.blocks[0].attn.load_state_dict(attn.state_dict())
    torch.testing.assert_close(whole(torch.arange(50 * 41).view(50, 41))[:, -1, 0], model)


def test_interp_records_the_patterns_and_takes_heads_out() -> None:
    m = script()
    attn = by_hand([0.3, -0.3], [1.5, -1.5])
    found = m.readout(*m.circuits(attn))
    said = m.through_interp(attn, found, n=20)
    assert max(said["weight_misplaced"]) < 1e-5
    z, y = m.tasks(20, torch.Generator().manual_seed(2))
    alone = m.reduced(z, torch.tensor([-0.3]), torch.tensor([-1.5]))
    assert said["error_without_heads"]["positive"] == pytest.approx(float((alone - y).square().mean()), rel=1e-4)


def test_a_few_steps_of_training_bring_the_error_down() -> None:
    m = script()
    torch.manual_seed(0)
    attn = m.Attention(2)
    z, y = m.tasks(2000, torch.Generator().manual_seed(9))
    with torch.no_grad():
        before = float((m.predicted(attn, z) - y).square().mean())
    m.train(attn, steps=400, batch=64, rate=1e-2, seed=0)
    with torch.no_grad():
        after = float((m.predicted(attn, z) - y).square().mean())
    assert after < 0.6 * before
