"""Estimates of edges after newer papers: their definitions in float64, planted edges that they find or must miss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edge_oracle import GATE, LINEAR, PAIR, Oracle, Wide, asked, difference, found

import interp


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_clean_corrupted_is_the_mean_slope_of_both_runs(name: str) -> None:
    m, base, source = asked(name)
    with Wide():
        e = interp.edges(m, base=base, source=source, metric=difference, method="clean-corrupted")
        end = m.run(source, record="embed")["embed"]
        here, there = Oracle(m, base, source), Oracle(m, base, source, (interp.Set("embed", end),))
        for edge in ("L0.H1->L1.H2.q_in", "embed->L1.K0.v_in", "L0.mlp_write->logits"):
            sender, _, receiver = edge.partition("->")
            expected = (here.slope(sender, receiver) + there.slope(sender, receiver)) / 2
            torch.testing.assert_close(e[edge], expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_eap_gp_walks_by_the_gradient_towards_the_sources_logits(name: str) -> None:
    """The path is made here once more, with plain calls of the model and torch's own gradient."""
    m, base, source = asked(name)
    with Wide():
        e = interp.edges(m, base=base, source=source, metric=difference, method="eap-gp", steps=2)
        goal, here, points = m.run(source)["logits"], m.run(base, record="embed")["embed"], []
        for _ in range(2):
            here = here.detach().requires_grad_()
            logits = m.run(base, edits=[interp.Set("embed", here)], grad=True)["logits"]
            (g,) = torch.autograd.grad(((logits - goal) ** 2).sum(), here)
            here = (here - torch.stack([one / one.norm() for one in g])).detach()
            points.append(Oracle(m, base, source, (interp.Set("embed", here),)))
        for edge in ("L0.H1->L1.H2.q_in", "L0.H0->logits"):
            sender, _, receiver = edge.partition("->")
            expected = torch.stack([point.slope(sender, receiver) for point in points]).mean(0)
            torch.testing.assert_close(e[edge], expected, atol=1e-7, rtol=1e-5)
    start = m.run(base, record="embed")["embed"]
    assert e.meta["moved"] == pytest.approx(float((here - start).flatten(1).norm(dim=1).mean()), rel=1e-6)
    assert e.meta["steps"] == 2


def test_padding_neither_moves_nor_counts_on_the_path() -> None:
    m, base, source = asked("llama")
    ids, other = base["input_ids"][:1], source["input_ids"][:1]
    pad, mask = torch.full((1, 2), 7), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    padded, further = ({"input_ids": torch.cat([pad, x], 1), "attention_mask": mask} for x in (ids, other))
    how: dict[str, Any] = {"metric": difference, "method": "eap-gp", "steps": 2}
    plain = interp.edges(m, base={"input_ids": ids}, source={"input_ids": other}, **how)
    torch.testing.assert_close(
        interp.edges(m, base=padded, source=further, **how).values, plain.values, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["and", "or", "backup", "cancel", "saturated"])
def test_both_ends_find_what_is_flat_at_one_of_them(name: str, direction: str) -> None:
    """and, or: the slope is 2 at one end and 0 at the other, so each signal gets half of 2; a softmax that is flat at
    both ends is missed, and so is a backup that never wakes."""
    sign = 1.0 if direction == "denoise" else -1.0
    wanted = LINEAR.get(name) or GATE | dict.fromkeys(PAIR, 1.0)
    expected = pytest.approx({edge: sign * value for edge, value in wanted.items()}, abs=5e-5)
    assert found(name, direction, "clean-corrupted") == expected


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["or", "backup", "cancel", "saturated"])
def test_a_path_of_long_steps_finds_and_misses_what_follows_from_them(name: str, direction: str) -> None:
    """A step has length 1 and a signal is worth 1, so from the sloped side of `or` the first step is over the edge
    already, and from the flat side nothing points anywhere: both are missed. What is linear is found by any path, and
    what is saturated all around stays unseen."""
    sign = 1.0 if direction == "denoise" else -1.0
    expected = {edge: sign * value for edge, value in LINEAR.get(name, GATE).items()}
    assert found(name, direction, "eap-gp") == pytest.approx(expected, abs=5e-5)


def test_a_path_from_the_flat_side_misses_an_and_and_from_the_other_counts_its_points() -> None:
    assert found("and", "denoise", "eap-gp") == pytest.approx(GATE, abs=5e-5)
    seen = found("and", "noise", "eap-gp")
    share = -seen["L0.H1->L0.mlp_in"] / 2 * 5  # of 5 points, those where both signals still add up to more than 1
    assert 0 < share <= 5
    assert share == pytest.approx(round(share), abs=1e-3)
    assert [seen[edge] for edge in PAIR] == pytest.approx([seen[PAIR[0]]] * 4, abs=1e-4)


def test_a_path_needs_a_run_to_walk_to_and_a_step() -> None:
    m, base, source = asked("gpt2")
    how: dict[str, Any] = {"base": base, "metric": difference}
    for method in ("eap-gp", "clean-corrupted"):
        with pytest.raises(interp.InterpError, match="needs two runs"):
            interp.edges(m, **how, source="zero", method=method)
    with pytest.raises(interp.InterpError, match="at least one step"):
        interp.edges(m, **how, source=source, method="eap-gp", steps=0)
    same = interp.edges(m, **how, source=base, method="eap-gp", steps=1)
    assert not bool(same.values.any())
    assert same.meta["moved"] == 0
