"""Learned masks: soft circuits are hard ones at 0 and 1, gradients are slopes, and planted edges stay, no others."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from edge_oracle import Wide, asked, difference
from torch.distributions import Normal, kl_divergence

import interp
from interp.circuits.discovery.bottleneck import told
from interp.circuits.discovery.edge_pruning import FAR, drawn, opened
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Runner
from interp.circuits.graph.soft import Soft
from interp.metrics.shipped import LogitDifference
from interp.planted.probes import probe_task

PAIR = {"embed->L0.K1.v_in", "embed->L0.K2.v_in", "L0.H1->L0.mlp_in", "L0.H2->L0.mlp_in", "L0.mlp_write->logits"}
ONE = {"embed->L0.K1.v_in", "L0.H1->L0.mlp_in", "L0.mlp_write->logits"}
OTHER = {"embed->L0.K2.v_in", "L0.H2->L0.mlp_in", "L0.mlp_write->logits"}
PRIMARY = {"embed->L0.K1.v_in", "L0.H1->logits"}
CANCEL = {edge for head in (0, 1, 3) for edge in (f"embed->L0.K{head}.v_in", f"L0.H{head}->logits")}
SATURATED = {"embed->L0.K1.v_in", "L0.H1->L1.H2.q_in", "L1.H2->logits"}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "vit", "llava"])
def test_a_soft_circuit_of_zeros_and_ones_is_the_hard_one_and_its_gradient_a_slope(name: str) -> None:
    m, base, source = asked(name)
    with Wide():
        pair = GraphPair(m, base, source, difference)
        runner = Runner(pair)
        soft, graph = Soft(runner), runner.graph
        for share in (0.0, 0.6, 1.0):
            mask = (torch.rand(graph.exists.shape) < share) & graph.exists
            torch.testing.assert_close(soft(mask.double()).detach(), runner(mask), atol=1e-9, rtol=1e-9)
        gates = torch.rand(graph.exists.shape, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(soft(gates).sum(), gates)
        for n in (1, len(graph.edges) // 2, -1):
            step = torch.zeros_like(gates).index_put(
                tuple(map(torch.tensor, graph.edges[n])), torch.tensor(1e-5).double()
            )
            ends = [soft(gates.detach() + sign * step).sum() for sign in (1, -1)]
            torch.testing.assert_close(slope[graph.edges[n]], (ends[0] - ends[1]) / 2e-5, atol=1e-7, rtol=1e-5)
    assert not bool(slope[~graph.exists].any())
    assert all(p.grad is None for p in m.module.parameters())


def test_gates_by_position_are_gates_where_every_position_has_the_same() -> None:
    m, base, source = asked("llama")
    runner = Runner(GraphPair(m, base, source, difference))
    gates = torch.rand(runner.graph.exists.shape, dtype=torch.float64)
    rows, length = runner.pair.valid.shape
    by_position = gates[..., None, None].expand(-1, -1, rows, length)
    torch.testing.assert_close(Soft(runner)(by_position), Soft(runner)(gates))


def test_gates_are_those_of_the_paper() -> None:
    a, random = torch.linspace(-3, 3, 60).double(), torch.Generator().manual_seed(3)
    x = torch.rand(60, generator=torch.Generator().manual_seed(3)).clamp(FAR, 1 - FAR).double()
    s = 1 / (1 + torch.exp(-(torch.log(x / (1 - x)) + a) / (2 / 3)))
    gates = drawn(a, random)
    torch.testing.assert_close(gates, (1.2 * s - 0.1).clamp(0, 1))
    assert int(((gates > 0) & (gates < 1)).sum()) > 10
    often = torch.stack([drawn(a, random) > 0 for _ in range(2000)]).double().mean(0)
    torch.testing.assert_close(opened(a), often, atol=0.05, rtol=0)


def test_what_an_edge_tells_is_a_divergence_of_normals() -> None:
    """Of l w + (1 - l) (mu + sigma e) from mu + sigma e, for every prompt and feature, by torch's own formula."""
    w, let = torch.randn(5, 7).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    w[:, 2] = 0.0  # the same in every prompt: a deviation of 0, of which the divergence is a limit
    mu, sigma = w.mean(0), w.std(0)
    sigma = torch.where(sigma > 0, sigma, 1e-9)
    expected = [
        kl_divergence(Normal(one * w + (1 - one) * mu, (1 - one) * sigma), Normal(mu.expand(5, 7), sigma)).mean()
        for one in let
    ]
    c = torch.tensor(4 / 5 * 6 / 7).double()
    torch.testing.assert_close(told(let, c), torch.stack(expected))


@cache
def pruned(name: str, direction: str, size: int, steps: int) -> interp.Circuit:
    m = interp.load(f"zoo:planted-{name}")
    task = probe_task(f"planted-{name}", model=m)
    base, source = (task.corrupt, task.clean) if direction == "denoise" else (task.clean, task.corrupt)
    rate = 0.4 if steps < 100 else 0.2
    found: interp.Circuit = interp.circuits.edge_pruning(
        m, base=base, source=source, metric=task.metric, size=size, steps=steps, rate=rate
    )
    return found


@pytest.mark.parametrize(
    ("name", "direction", "kept"),
    [
        ("and", "noise", [PAIR]), ("or", "noise", [ONE, OTHER]), ("backup", "noise", [PRIMARY]),
        ("cancel", "noise", [CANCEL]),
    ],
)  # fmt: skip
def test_edge_pruning_keeps_the_planted_edges_and_no_others(name: str, direction: str, kept: list[set[str]]) -> None:
    """and: both signals are needed to keep the answer; or: one of them, and which is chance. A backup that never
    wakes is missed. Of three heads that cancel all stay: on the way from all to the carrier alone stands a loss."""
    found = pruned(name, direction, len(kept[0]), 60)
    assert set(found.edges) in kept
    if name not in ("and", "or") or kept == [PAIR]:
        assert found.scores is not None
        others = [found.scores[u, v] for u, v in found.graph.edges if found.graph.name((u, v)) not in kept[0]]
        assert float(torch.stack(others).max()) < 0.5 < float(found.scores[found.mask].min())


@pytest.mark.slow
def test_edge_pruning_finds_who_selects_through_a_saturated_softmax_by_rare_gradients() -> None:
    assert set(pruned("saturated", "noise", 3, 200).edges) == SATURATED


def both_rows(name: str) -> dict[str, Any]:
    """Clean and corrupt as two prompts of one batch, so that noise comes from how they differ."""
    m = interp.load(f"zoo:planted-{name}")
    task = probe_task(f"planted-{name}", model=m)
    yes, no = (m.processor.convert_tokens_to_ids(word) for word in ("yes", "no"))
    ids = torch.cat([task.clean.ids, task.corrupt.ids])
    return {"model": m, "base": {"input_ids": ids}, "metric": LogitDifference(((yes,),) * 2, ((no,),) * 2)}


@pytest.mark.parametrize(
    ("name", "kept"),
    [("and", PAIR), ("or", PAIR), ("backup", PRIMARY), ("cancel", CANCEL), ("saturated", SATURATED)],
)
def test_a_bottleneck_keeps_the_planted_edges_and_no_others(name: str, kept: set[str]) -> None:
    """Noise on either of two signals spoils the answer, for `or` as for `and`. Noise of two heads that cancel does not,
    so both are needed. The backup and the flag it reads are the same in both prompts: missed."""
    found = interp.circuits.bottleneck(**both_rows(name), size=len(kept), steps=50, rate=0.2)
    assert set(found.edges) == kept
    assert found.scores is not None
    others = [found.scores[u, v] for u, v in found.graph.edges if found.graph.name((u, v)) not in kept]
    assert float(torch.stack(others).max()) < 0.2 < float(found.scores[found.mask].min())


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_learning_leaves_the_model_as_it_was_and_is_the_same_again(name: str) -> None:
    m, base, source = asked(name)
    before = {key: value.clone() for key, value in m.module.state_dict().items()}
    how: dict[str, Any] = {"base": base, "metric": difference, "size": 0.3, "steps": 2, "seeds": 2}
    for learn in (interp.circuits.edge_pruning, interp.circuits.bottleneck):
        more = {"source": source} if learn is interp.circuits.edge_pruning else {}
        one, again = learn(m, **how, **more), learn(m, **how, **more)
        assert one == again
        assert one.scores is not None
        assert again.scores is not None
        assert torch.equal(one.scores.nan_to_num(9.0), again.scores.nan_to_num(9.0))
        assert 0 <= one.meta["stability"] <= 1
    assert all(torch.equal(value, before[key]) for key, value in m.module.state_dict().items())


def test_what_cannot_be_learned_is_refused() -> None:
    m, base, source = asked("gpt2")
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference}
    for size in (0, 1.0, -0.1, 10**6, True):
        with pytest.raises(interp.InterpError, match="size is a number of edges"):
            interp.circuits.edge_pruning(m, size=size, **how)
    with pytest.raises(interp.InterpError, match="at least 1"):
        interp.circuits.edge_pruning(m, size=3, steps=0, **how)
    with pytest.raises(interp.InterpError, match="needs two runs"):
        interp.circuits.edge_pruning(m, size=3, **{**how, "source": "zero"})
    with pytest.raises(interp.InterpError, match="no edge can be learned"):
        interp.circuits.edge_pruning(m, size=3, **{**how, "source": base})
    with pytest.raises(interp.InterpError, match="at least two rows"):
        interp.circuits.bottleneck(m, base={"input_ids": base["input_ids"][:1]}, metric=difference, size=3)
    mask = torch.ones_like(base["input_ids"])
    mask[0, :2] = 0
    with pytest.raises(interp.InterpError, match="equal length"):
        interp.circuits.bottleneck(m, base={**base, "attention_mask": mask}, metric=difference, size=3)
