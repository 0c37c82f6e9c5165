"""The worst change of attention, against finite differences of a one-layer model whose attention is redone here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached, difference, planted, trial
from torch import Tensor
from transformers import StableLmConfig, StableLmForCausalLM

import interp
from interp.kernels.errors import InterpError
from interp.robustness import AttentionPerturbation, perturb_attention

LENGTH, HEADS = 3, 4


@cache
def tiny() -> interp.Model:
    """One layer in float64 (its norms too, unlike Llama's), two query heads on each kv head."""
    torch.manual_seed(0)
    config = StableLmConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=16,
        vocab_size=50, max_position_embeddings=16,
    )  # fmt: skip
    return interp.attach(StableLmForCausalLM(config).double().eval())


@cache
def question() -> Any:
    return {"input_ids": torch.randint(5, 45, (2, LENGTH), generator=torch.Generator().manual_seed(1))}


def answered(change: Tensor, of: str = "scores") -> Tensor:
    """The metric with a change of the scores or of the pattern [row, head, query, key], examples taken in turn:
    attention is done here from q, k and v, and z is put in, so that no edit of scores is used."""
    m, x = tiny(), {"input_ids": question()["input_ids"].repeat(len(change) // 2, 1)}
    tape = m.run(x, record=["L0.q", "L0.k", "L0.v"])
    q, k, v = (tape[f"L0.{name}"].transpose(1, 2) for name in "qkv")
    k, v = (one.repeat_interleave(HEADS // one.shape[1], 1) for one in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.full((LENGTH, LENGTH), -torch.inf, dtype=scores.dtype).triu(1)
    weights = (scores + hidden + (change if of == "scores" else 0)).softmax(-1)
    z = ((weights + (change if of == "pattern" else 0)) @ v).transpose(1, 2)
    return difference(m.run(x, edits=interp.Set("L0.z", z))["logits"], None)


PLACES = [(h, i, j) for h in range(HEADS) for i in range(LENGTH) for j in range(i + 1)]


def steps(size: float) -> Tensor:
    """[place, head, query, key], each with one number changed."""
    found = torch.zeros(len(PLACES), HEADS, LENGTH, LENGTH, dtype=torch.float64)
    for n, place in enumerate(PLACES):
        found[(n, *place)] = size
    return found


@cache
def slope(of: str) -> Tensor:
    """Its slope by central differences."""
    ends = [answered(steps(size).repeat_interleave(2, 0), of).view(-1, 2) for size in (1e-5, -1e-5)]
    each = ((ends[0] - ends[1]) / 2e-5).T
    return (each[:, :, None, None, None] * steps(1.0)).sum(1)


def centred(slope: Tensor) -> Tensor:
    """Its part that leaves each query's keys with a sum of 0."""
    seen = torch.ones(LENGTH, LENGTH).tril()
    return (slope - slope.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)) * seen


@pytest.mark.parametrize("of", ["scores", "pattern"])
def test_a_small_change_costs_radius_times_the_norm_of_the_gradient(of: Any) -> None:
    wanted = centred(slope(of)).flatten(1).norm(dim=1)
    found = perturb_attention(tiny(), question(), metric=difference, of=of, radii=(1e-4, 1e-3), draws=3)
    assert torch.allclose(found.rate[0], wanted, rtol=1e-6)
    for radius, change in zip(found.radii, found.values[:, 0], strict=True):
        assert torch.allclose(change, -radius * wanted, rtol=20 * radius)
    assert bool((found.random[0] > found.worst[0][:, None]).all())


def test_the_change_at_a_larger_radius_is_that_of_the_attention_redone_here() -> None:
    way = -centred(slope("scores"))
    way = way / way.flatten(1).norm(dim=1)[:, None, None, None]
    found = perturb_attention(tiny(), question(), metric=difference, radii=(2.0,), draws=0)
    assert torch.allclose(found.values[0, 0], answered(2.0 * way) - answered(torch.zeros_like(way)), atol=1e-6)


def test_heads_by_themselves_have_their_own_radius() -> None:
    each = centred(slope("scores")).flatten(2).norm(dim=2).T
    found = perturb_attention(tiny(), question(), metric=difference, by="head", radii=(1e-4,), draws=0)
    assert found.cells == tuple(f"L0.H{h}" for h in range(HEADS))
    assert torch.allclose(found.rate, each, rtol=1e-6)
    assert torch.allclose(found.values[0], -1e-4 * each, rtol=1e-2)


def test_differences_to_other_examples_span_the_change() -> None:
    tape = tiny().run(question(), record="L0.H*.scores")["L0.H*.scores"]
    seen = torch.ones(LENGTH, LENGTH).tril().bool()
    scores = torch.where(seen, tape, 0.0)
    apart = centred(scores.flip(0) - scores)
    apart = apart / apart.flatten(1).norm(dim=1)[:, None, None, None]
    wanted = (centred(slope("scores")) * apart).flatten(1).sum(1).abs()  # two examples: one direction each way
    found = perturb_attention(tiny(), question(), metric=difference, along="differences", radii=(1e-4,), draws=0)
    assert torch.allclose(found.rate[0], wanted, rtol=1e-6)
    assert torch.allclose(found.values[0, 0], -1e-4 * wanted, rtol=1e-2)


def test_without_a_metric_the_answer_moves_along_its_largest_curvature() -> None:
    """By hand: the divergence is r H r / 2 near 0, with H = J' F J, J the logits' slopes and F their covariance under
    the answer; power iteration has to come near its largest eigenvalue."""
    row = {"input_ids": question()["input_ids"][:1]}
    many = {"input_ids": row["input_ids"].repeat(len(PLACES), 1)}
    ends = [tiny().run(many, edits=interp.Add("L0.scores", steps(size)))["logits"][:, -1] for size in (1e-5, -1e-5)]
    jacobian = ((ends[0] - ends[1]) / 2e-5).T
    p = tiny().run(row)["logits"][0, -1].softmax(-1)
    curvature = jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian
    wanted = float(torch.linalg.eigvalsh(curvature)[-1])
    found = perturb_attention(tiny(), row, radii=(1e-2,), power=12, draws=2)
    assert float(-2 * found.values[0, 0, 0] / 1e-4) == pytest.approx(wanted, rel=0.03)
    assert float(found.base) == 0.0


def test_more_steps_never_find_less() -> None:
    how: dict[str, Any] = {"metric": difference, "radii": (3.0,), "draws": 0}
    once, often = (perturb_attention(attached("llama"), question(), steps=n, **how) for n in (1, 4))
    assert bool((often.values <= once.values + 1e-6).all())
    assert bool((often.values < once.values - 1e-3).any())


def test_the_planted_reader_is_the_only_head_whose_attention_matters(tmp_path: Path) -> None:
    t = trial("vit", tmp_path)
    found = perturb_attention(t.model, t.base, metric=t.metric, by="head", radii=(1.0,), draws=1)
    assert found.top(1)["site"].tolist() == ["L1.H2"]
    others = [n for n, cell in enumerate(found.cells) if cell != "L1.H2"]
    assert found.values[:, others].abs().max() < 1e-5
    assert found.worst[1, 0, others].eq(1).all()


def test_padding_is_neither_changed_nor_counted() -> None:
    ids, m = question()["input_ids"], tiny()
    pad = torch.zeros(2, 2, dtype=ids.dtype)
    padded = {"input_ids": torch.cat([pad, ids], 1), "attention_mask": torch.cat([pad, torch.ones_like(ids)], 1),
              "position_ids": torch.tensor([[0, 0, 0, 1, 2]] * 2)}  # fmt: skip
    whole, same = (perturb_attention(m, x, metric=difference, radii=(0.5,), draws=0) for x in (question(), padded))
    assert torch.allclose(whole.rate, same.rate, rtol=1e-6)
    assert torch.allclose(whole.worst[[0, 1, 3]], same.worst[[0, 1, 3]], atol=1e-6)


def test_explanations_stay_where_nothing_moves_and_move_with_the_radius() -> None:
    found = perturb_attention(attached("llama"), question(), metric=difference, radii=(1e-6, 30.0), draws=2)
    nothing, much = (found.worst[:, n, 0].mean(1) for n in (0, 1))
    assert torch.allclose(nothing[1:], torch.ones(3, dtype=torch.float64), atol=1e-5)
    assert bool((much[2:] < 0.9).all())


def test_it_is_read_back_and_shown(tmp_path: Path) -> None:
    found = perturb_attention(tiny(), question(), metric=difference, by="head", radii=(0.1, 1.0), draws=2)
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert isinstance(again, AttentionPerturbation)
    assert torch.equal(again.worst, found.worst)
    assert again.radii == found.radii
    assert list(found.curve("heads", "L0.H1").columns) == ["radius", "worst", "low", "high", "random"]
    assert found.plot().data
    assert "predictions stay" in repr(found)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"radii": (0.0,)}, "above 0"),
        ({"radii": ()}, "above 0"),
        ({"steps": 0}, "at least 1"),
        ({"heads": "L0.z"}, "no pattern of heads"),
        ({"heads": "L7.H0"}, "no layer 7"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said):
        perturb_attention(tiny(), question(), metric=difference, **how)


def test_one_example_has_no_other_to_differ_from() -> None:
    row = {"input_ids": question()["input_ids"][:1]}
    with pytest.raises(InterpError, match="at least two"):
        perturb_attention(tiny(), row, metric=difference, along="differences")


def test_a_number_or_a_head_that_is_not_there_is_named() -> None:
    found = perturb_attention(planted("planted-vit"), planted("planted-vit").example(), radii=(1.0,), draws=0)
    with pytest.raises(InterpError, match="there are metric"):
        found.curve("loss")
    with pytest.raises(InterpError, match="there are all"):
        found.curve("metric", "L0.H0")
