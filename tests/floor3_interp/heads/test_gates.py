"""Gates are the papers' formulas in float64, train nothing but themselves, and find the heads that a task needs."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.heads.gate_kinds import BANKS, GAMMA, ZETA, Bank, Binary, Bottleneck, HardConcrete, T
from interp.heads.gates import gated
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.hooks.sites import Site
from interp.planted import build


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank(kind: type, *values: float) -> Bank:
    found = kind(1, random())
    found.parameters = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values]
    return found


def below(x: float, log_a: float) -> float:
    """P(g <= x) of a stretched concrete variable, from u = sigmoid(T logit(s) - log a), s = (x - gamma) / width."""
    s = (x - GAMMA) / (ZETA - GAMMA)
    return 1 / (1 + math.exp(-(T * math.log(s / (1 - s)) - log_a)))


@pytest.mark.parametrize("log_a", [-3.0, -0.5, 0.0, 1.3, 4.0])
def test_hard_concrete_gates_are_distributed_as_the_closed_form_says(log_a: float) -> None:
    one = HardConcrete(1, random())
    one.parameters = [torch.full((200_000,), log_a, dtype=torch.float64)]
    drawn = one.draw(random(1)).double()
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert float((drawn > 0).double().mean()) == pytest.approx(1 - below(0.0, log_a), abs=5e-3)
    assert float((drawn >= 1).double().mean()) == pytest.approx(1 - below(1.0, log_a), abs=5e-3)
    for x in (0.2, 0.5, 0.9):
        assert float((drawn <= x).double().mean()) == pytest.approx(below(x, log_a), abs=5e-3)
    assert float(one.openness()[0]) == pytest.approx(1 - below(0.0, log_a), abs=1e-12)
    assert float(one.cost()) == pytest.approx(1 - below(0.0, log_a), abs=1e-12)


def test_the_slope_of_the_expected_gate_is_that_of_its_integral() -> None:
    """d E[g] / d log a from draws, against the difference quotient of the integral of P(g > x) over 0..1."""
    log_a, h, n = 0.4, 1e-4, 400_000
    one = HardConcrete(1, random())
    wide = torch.full((n,), log_a, dtype=torch.float64, requires_grad=True)
    one.parameters = [wide]
    (slope,) = torch.autograd.grad(one.draw(random(2)).mean(), [wide])
    grid = [(i + 0.5) / 2000 for i in range(2000)]
    expected = [sum(1 - below(x, log_a + d) for x in grid) / 2000 for d in (-h, h)]
    assert float(slope.sum()) == pytest.approx((expected[1] - expected[0]) / (2 * h), abs=3e-3)


@pytest.mark.parametrize(("kind", "start"), [(HardConcrete, (0.7,)), (Bottleneck, (0.8, -1.2))])
def test_costs_have_the_gradient_of_their_differences(kind: type, start: tuple[float, ...]) -> None:
    one = bank(kind, *start)
    found = torch.autograd.grad(one.cost(), one.parameters)
    for i, slope in enumerate(found):
        ends = [
            float(bank(kind, *(v + d * (i == j) for j, v in enumerate(start))).cost().detach()) for d in (-1e-5, 1e-5)
        ]
        assert float(slope) == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-8)


def test_a_bottleneck_costs_its_divergence_and_closes_where_noise_outgrows_it() -> None:
    mu, log_variance = 0.8, -1.2
    one = bank(Bottleneck, mu, log_variance)
    assert float(one.cost().detach()) == pytest.approx(0.5 * math.log(1 + mu**2 / math.exp(log_variance)), abs=1e-12)
    one.parameters = [torch.full((200_000,), v, dtype=torch.float64) for v in (mu, log_variance)]
    drawn = one.draw(random(3))
    assert float(drawn.mean()) == pytest.approx(mu, abs=5e-3)
    assert float(drawn.var()) == pytest.approx(math.exp(log_variance), abs=5e-3)
    shut = bank(Bottleneck, 0.5, 2 * math.log(0.5) + 0.5)
    assert shut.openness().item() < 0.01
    assert shut.value().item() == 0
    assert bank(Bottleneck, 0.5, 2 * math.log(0.5) - 0.5).value().item() == 0.5


def test_a_binary_gate_goes_forward_hard_and_backward_soft() -> None:
    for s in (-0.4, 0.9):
        one = bank(Binary, s)
        drawn = one.draw(random())
        assert drawn.item() == pytest.approx(float(s > 0), abs=1e-12)
        (slope,) = torch.autograd.grad(drawn.sum(), one.parameters)
        p = 1 / (1 + math.exp(-s))
        assert float(slope) == pytest.approx(p * (1 - p), abs=1e-12)


@pytest.mark.parametrize("kind", BANKS)
def test_gates_start_open(kind: str) -> None:
    one = BANKS[kind](8, random())
    assert one.openness().min().item() > 0.7
    assert one.value().min().item() > 0.9


def test_a_gate_multiplies_its_own_head() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, length=6, seed=1)))
    factors = torch.tensor([1.0, 0.25, 0.0, 2.0])
    layer = [(Site(None, 1, "z"), (0, 1, 2, 3))]
    plain, tape = (m.run(x, record="L1.z", edits=e)["L1.z"] for e in ([], gated(layer, factors)))
    torch.testing.assert_close(tape, plain * factors[:, None])


def accuracy(m: interp.Model, task: interp.Task, edits: tuple = ()) -> float:
    right: list[bool] = []
    for start in range(0, len(task), 50):
        part = task.take(range(start, min(start + 50, len(task))))
        right += part.right_in(m.run(part.clean, edits=edits)["logits"])
    return sum(right) / len(right)


@cache
def on_ioi() -> tuple[interp.Model, interp.Task, object]:
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=64)
    return m, task, interp.heads.gates(m, task, seeds=1, steps=100)


def test_gates_on_zoo_ioi_keep_held_out_accuracy_with_at_most_half_the_heads() -> None:
    m, _, found = on_ioi()
    out = interp.tasks.ioi(m, n=200).heldout
    assert int(found.kept().sum()) <= len(found.sites) // 2
    assert accuracy(m, out, found.edits()) >= accuracy(m, out) - 0.01


def test_only_gates_are_trained_and_a_seed_says_everything() -> None:
    m, task, _ = on_ioi()
    before = {name: p.clone() for name, p in m.module.named_parameters()}
    part = task.take(range(16))
    first, again, other = (interp.heads.gates(m, part, steps=3, seeds=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.openness, again.openness)
    assert not torch.equal(first.openness, other.openness)
    assert all(torch.equal(before[name], p) for name, p in m.module.named_parameters())
    assert all(p.grad is None for p in m.module.parameters())
    assert not m.handles()


def test_planted_heads_stay_open_and_null_heads_close() -> None:
    m = planted()
    task = interp.tasks.key_value(m, n=16)
    found = interp.heads.gates(m, task, seeds=1, steps=50)
    assert accuracy(m, task, found.edits()) == accuracy(m, task) == 1.0
    assert 0 < int(found.kept().sum()) < len(found.sites)


def test_without_a_loss_the_gates_keep_the_model_s_own_logits() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=4, length=6, seed=2)))
    idle = interp.heads.gates(m, x, penalty=0.0, steps=20, seeds=1)
    assert bool(idle.kept().all())
    shut = interp.heads.gates(m, x, penalty=1000.0, steps=60, seeds=1)
    assert not bool(shut.kept().any())


@pytest.mark.parametrize("kind", BANKS)
def test_a_vision_tower_and_a_loss_of_one_s_own(kind: str) -> None:
    m = attached("vit")
    x = m.inputs(dict(example(m.module, batch=2, length=6, seed=2)))

    def loss(logits: Tensor, _: interp.Inputs) -> Tensor:
        return -logits[:, 0]

    found = interp.heads.gates(m, x, kind, loss=loss, heads="L1.H0,2", steps=2, seeds=2)
    assert found.sites == ("L1.H0", "L1.H2")
    assert found.to_frame()["tower"].tolist() == ["vision", "vision"]
    assert found.openness.shape == (2, 2)
    assert found.meta["loss"] == "loss"


def test_a_metric_is_a_loss_turned_around() -> None:
    m, task, _ = on_ioi()
    part = task.take(range(8))
    run = interp.heads.gates(m, part, steps=1, seeds=1, loss=part.metric)
    value = run.training()["loss"][0]
    assert value < 0 < float(part.metric(m.run(part.clean)["logits"], part.clean).mean())


def test_tables_files_and_edits(tmp_path: Path) -> None:
    _, _, found = on_ioi()
    table = found.to_frame()
    assert {"site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"} <= set(table.columns)
    assert len(found.edits()) == len(found.sites) - int(found.kept().sum())
    assert found.top(3)["estimate"].is_monotonic_decreasing
    assert len(found.plot().data) == 1
    back = interp.open(found.save(tmp_path / "gates"))
    assert torch.equal(back.openness, found.openness)
    assert back.sites == found.sites
    assert "open" in repr(back)


@pytest.mark.parametrize(
    ("how", "says"),
    [({"steps": 0}, "at least 1"), ({"loss": lambda logits, x: logits}, "a loss gives"),
     ({"loss": lambda logits, x: logits.detach().mean()}, "no gradient"),
     ({"loss": lambda logits, x: logits.mean() / 0}, "not finite")],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(how: dict, says: str) -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, length=6, seed=2)))
    with pytest.raises(InputsError, match=says):
        interp.heads.gates(m, x, steps=how.pop("steps", 1), seeds=1, **how)
