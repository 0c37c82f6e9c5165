"""Which heads go is what the scores, shares and schedules say; masks are edits; curves put chance beside the scores."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.planted import build
from interp.pruning.choose import best, even, labels, scored, shares
from interp.pruning.curve import magnitude


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


def inputs(name: str, seed: int = 3) -> Any:
    m = attached(name)
    return m.inputs(dict(example(m.module, batch=2, seed=seed)))


def test_the_lowest_scores_go_and_heads_without_one_stay() -> None:
    m = attached("llama")
    p = interp.prune(m, {"L0.H0.z": 3, "L0.H1": -1.0, "1.2": 0.5, "L1H3": 2}, keep_fraction=0.5)
    assert p.gone == ("L0.H1", "L1.H2")
    assert [edit.site for edit in p.edits] == ["L0.H1.z", "L1.H2.z"]
    assert p.model is m
    assert p.counts == {"heads": (8, 6), "groups": (4, 4), "parameters": (p.counts["parameters"][0],) * 2}
    assert interp.prune(m, {"L0.H0": 1.0, "L0.H1": 2.0}, keep=2).gone == ()
    assert interp.prune(m, {"L0.H0": 1.0, "L0.H1": 2.0}, keep=0).gone == ("L0.H0", "L0.H1")


def test_a_masked_run_is_the_run_under_the_edits() -> None:
    m, x = attached("llama"), inputs("llama")
    p = interp.prune(m, {"L0.H0": 1.0, "L0.H3": 2.0}, keep=1)
    assert torch.equal(p.run(x)["logits"], m.run(x, edits=[interp.Zero("L0.H0.z")])["logits"])
    tape = p.run(x, record="L0.z")
    assert bool((tape["L0.z"][:, :, 0] == 0).all())
    assert bool((tape["L0.z"][:, :, 1:] != 0).any())


def test_towers_have_their_own_heads() -> None:
    m = attached("llava")
    p = interp.prune(m, {"vision.L0.H1": 0.0, "text.L1.H2": 1.0, "vision.L2.H2": 2.0}, keep=1)
    assert p.gone == ("vision.L0.H1", "text.L1.H2")
    frame = p.to_frame().set_index("site")
    assert frame.loc["vision.L0.H1", "tower"] == "vision"
    assert frame.loc["text.L1.H2", "kept"] is not True
    assert len(p.plot().data) == 1


def test_scores_are_read_from_results() -> None:
    m = planted()
    task = interp.tasks.key_value(m, n=8)
    one = interp.importance(m, task, by="zero")
    assert scored(m.anatomy, one) == pytest.approx(one.scores("zero"))
    two = interp.importance(m, task, by=["zero", "norm"])
    with pytest.raises(InputsError, match="give scores"):
        scored(m.anatomy, two)
    effects = interp.patch(m, base=task.clean, source="zero", metric=task.metric, sites="L*.H*.z")
    found = scored(m.anatomy, effects)
    assert list(found) == [site.removesuffix(".z") for site in effects.sites]
    assert list(found.values()) == pytest.approx(effects.mean.abs().tolist())
    gates = interp.heads.gates(m, task, seeds=1, steps=2)
    assert scored(m.anatomy, gates) == pytest.approx(dict(zip(gates.sites, gates.openness[:, 0].tolist(), strict=True)))


def test_the_heads_a_planted_model_needs_are_kept_by_their_ablation_and_by_nothing_else() -> None:
    m = planted()
    task = interp.tasks.key_value(m, n=12)
    whole = task.metric(m.run(task.clean)["logits"], task.clean).mean()
    one = interp.importance(m, task, by="zero").scores("zero")
    few = interp.prune(m, one, keep=sum(abs(v) > 1e-3 for v in one.values()), how="cut")
    kept = few.run(task.clean)["logits"]
    assert float(task.metric(kept, task.clean).mean()) == pytest.approx(float(whole), rel=0.05)
    worst = interp.prune(m, {name: -value for name, value in one.items()}, keep_fraction=0.5)
    assert float(task.metric(worst.run(task.clean)["logits"], task.clean).mean()) < 0.5 * float(whole)


def test_shares_go_down_to_the_one_asked_for() -> None:
    assert shares(0.4, None) == [0.4]
    assert shares(0.4, 3) == pytest.approx([0.8, 0.6, 0.4])
    assert shares(0.4, [0.9, 0.5]) == [0.9, 0.5, 0.4]
    for wrong in ([0.3], [0.8, 0.9], 0):
        with pytest.raises(InputsError, match=r"shares|schedule"):
            shares(0.4, wrong)


def test_a_schedule_scores_what_is_left_and_what_is_gone_stays_gone() -> None:
    m, x = attached("llama"), inputs("llama")
    names = list(labels(m.anatomy))
    seen = []

    def scores(own: interp.Model) -> dict[str, float]:
        z = own.run(x, record="L*.result")
        idle = [n for n in names if not bool(z[n.partition(".")[0] + ".result"][:, :, int(n[-1])].any())]
        seen.append(idle)
        first = names if len(seen) % 2 else names[::-1]
        return {name: float(n) for n, name in enumerate(first)}

    p = interp.prune(m, scores, keep=2, schedule=3)
    assert seen == [[], names[:2], [*names[:2], *names[-2:]]]
    assert p.gone == (*names[:4], *names[-2:])
    assert [step["kept"] for step in p.meta["steps"]] == [6, 4, 2]
    with pytest.raises(InputsError, match="a schedule scores"):
        interp.prune(m, {"L0.H0": 1.0}, keep=0, schedule=2)


def test_uniform_keeps_as_many_groups_in_every_layer() -> None:
    m = attached("llama")
    scores = {name: 10.0 * layer + head for name, (_, layer, head) in labels(m.anatomy).items()}
    assert sorted(best(scores, 0.5)) == ["L0.H0", "L0.H1", "L0.H2", "L0.H3"]
    assert sorted(even(m.anatomy, scores, 0.5)) == ["L0.H0", "L0.H1", "L1.H0", "L1.H1"]
    by_mean = scores | {"L0.H2": -50.0, "L1.H0": 99.0}
    assert sorted(even(m.anatomy, by_mean, 0.5)) == ["L0.H2", "L0.H3", "L1.H2", "L1.H3"]
    assert even(m.anatomy, scores, 0.1) == even(m.anatomy, scores, 0.5)
    with pytest.raises(InputsError, match="among all heads"):
        even(m.anatomy, {"L0.H0": 1.0}, 0.5)


@pytest.mark.parametrize(
    ("scores", "how", "says"),
    [({"L0.H0": 1.0}, {}, "say how many"), ({"L0.H0": 1.0}, {"keep": 1, "keep_fraction": 1.0}, "say how many"),
     ({"L0.H0": 1.0}, {"keep": 2}, "cannot stay"), ({"L0.H0": float("nan")}, {"keep": 1}, "finite"),
     ({"L0": 1.0}, {"keep": 1}, "not one head"), ({"L0.H0": 1.0, "L0H0": 2.0}, {"keep": 1}, "twice"),
     ({}, {"keep": 1}, "no scores"), (["L0.H0"], {"keep": 1}, "scores are a mapping")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(scores: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputsError, match=says):
        interp.prune(attached("llama"), scores, **how)


def test_masks_are_saved_and_read(tmp_path: Path) -> None:
    m, x = attached("llama"), inputs("llama")
    p = interp.prune(m, {"L0.H0": 1.0, "L0.H3": 2.0, "L1.H1": 0.0}, keep=1)
    again = type(p).load(p.save(tmp_path / "masks"), m)
    assert again.gone == p.gone
    assert torch.equal(again.run(x)["logits"], p.run(x)["logits"])
    assert "6 of 8 heads" in repr(again)


def test_magnitude_is_the_norm_of_what_reads_z() -> None:
    m = attached("gpt2")
    weight = m.module.transformer.h[1].attn.c_proj.weight.detach().double()
    found = magnitude(m, {"L1.H2": 0.0})
    assert found["L1.H2"] == pytest.approx(float(weight[16:24].square().sum().sqrt()))


@pytest.mark.parametrize("how", ["mask", "cut"])
def test_a_curve_has_the_scores_chance_and_magnitude(how: Any, tmp_path: Path) -> None:
    m = planted()
    task = interp.tasks.key_value(m, n=12)
    scores = interp.importance(m, task, by="zero").scores("zero")
    found = interp.prune(m, scores, keep_fraction=0.5, how=how).curve(task, fractions=(1.0, 0.5), random=2, rounds=1)
    frame = found.to_frame().set_index(["order", "share"])
    assert set(frame.index.get_level_values(0)) == {"scores", "random", "magnitude"}
    assert frame.loc[("scores", 1.0), "metric"] == frame.loc[("random", 1.0), "metric"] == 1.0
    by_hand = interp.prune(m, scores, keep_fraction=0.5)
    assert by_hand.gone
    with m.edited(by_hand.edits):
        assert frame.loc[("scores", 0.5), "metric"] == pytest.approx(sum(task.right()) / len(task))
    assert (frame["low"] <= frame["metric"]).all()
    assert (frame["metric"] <= frame["high"]).all()
    assert bool((frame["seconds"] > 0).all())
    assert len(found.plot().data) == 3
    assert "heads kept" in repr(found)
    assert interp.open(found.save(tmp_path / "curve")).rows == found.rows


def test_a_curve_of_inputs_needs_a_metric() -> None:
    m, x = attached("vit"), inputs("vit")
    p = interp.prune(m, dict.fromkeys(labels(m.anatomy), 1.0), keep=8)
    with pytest.raises(InputsError, match="need a metric"):
        p.curve(x)
    for fractions in ((), (1.0, 2.0)):
        with pytest.raises(InputsError, match="from 0 to 1"):
            p.curve(x, interp.metrics.Logit(((1,), (0,))), fractions=fractions)
    found = p.curve(x, interp.metrics.Logit(((1,), (0,))), fractions=(1.0,), random=1, rounds=0)
    expected = float(m.run(x)["logits"][[0, 1], [1, 0]].mean())
    assert found.to_frame()["metric"].iloc[0] == pytest.approx(expected, rel=1e-5)
