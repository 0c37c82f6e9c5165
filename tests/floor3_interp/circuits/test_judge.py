"""Is a circuit real: each number is its definition, the planted circuit passes, a circuit drawn by chance does not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.random import like
from interp.circuits.real.chance import holm, p_value
from interp.circuits.real.ground import Ground
from interp.circuits.real.optimal import Constants
from interp.circuits.real.robustness import _typo, misspelt, tokens_changed
from interp.prompts.rows import Row


@cache
def asked() -> tuple[interp.Model, interp.Task, interp.circuits.Edges]:
    m = interp.load("zoo:planted-decoder")
    task = interp.tasks.key_value(m, n=3)
    return m, task, interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, steps=2)


@cache
def verdict() -> interp.circuits.Verdict:
    m, task, scores = asked()
    return interp.circuits.judge(
        m, scores.circuit(n=12, signed=True), task, judged_on=task, others={"again": task}, random=19, parts=1,
        halves=2, ablation_steps=2,
    )  # fmt: skip


def test_holm_is_its_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert p_value(2.0, torch.tensor([1.0, 2.0, 3.0])) == 3 / 4


def test_every_question_has_a_line() -> None:
    found = {line.asked for line in verdict().lines}
    assert found == {"faithful", "stability", "new prompts", "robustness", "transfer", "ablation", "chance"}
    frame = verdict().to_frame()
    assert list(frame["asked"]) == [line.asked for line in verdict().lines]
    assert all(0 < line.p <= 1 for line in verdict().lines if line.p is not None)


def test_numbers_are_those_of_the_calls_they_come_from() -> None:
    m, task, scores = asked()
    circuit = scores.circuit(n=12, signed=True)
    f, *_ = verdict()["faithful"]
    assert f.value == pytest.approx(interp.faithfulness(m, circuit, task, random=0, parts=0).f)
    assert "it was found on" in f.why
    by = {line.of: line.value for line in verdict()["ablation"]}
    for name in ("mean", "zero"):
        expected = interp.faithfulness(m, circuit, task, random=0, parts=0, ablation=name).f
        assert by[f"{name}: f"] == pytest.approx(expected)
    again = {line.of: line.value for line in verdict()["transfer"]}
    assert again["again: f"] == pytest.approx(f.value)
    tail = scores.circuit(n=12, signed=True)
    same = interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, steps=5).circuit(n=12, signed=True)
    assert again["again: Jaccard"] == pytest.approx(tail.compare(same).jaccard)


def test_chance_is_told_apart_from_the_planted_circuit() -> None:
    m, task, scores = asked()
    sufficient, necessary, _ = verdict()["chance"]
    # no draw does as well: 1/21 for one edge beside 20 others, times three tests; by Holm no less for the two of 1/20
    assert sufficient.p == pytest.approx(3 / 21)
    assert necessary.p == pytest.approx(3 / 21)
    circuit = scores.circuit(n=12, signed=True)
    mask = like(circuit.graph, circuit.mask, "edge", torch.Generator().manual_seed(5))
    drawn = replace(circuit, mask=mask)
    found = interp.circuits.judge(
        m, drawn, task, judged_on=task, random=9, parts=0, halves=1, ablation_steps=0, find=lambda _: scores
    )
    assert not any(line.holds for line in found["chance"])
    assert found["chance"][0].p > 0.2
    assert found["faithful"][0].holds is False


def test_a_learned_constant_hurts_no_more_than_the_mean() -> None:
    m, task, scores = asked()
    pair = GraphPair(m, task.clean, task.corrupt, task.metric)
    mask = scores.circuit(n=4, signed=True).mask
    mean, learned = Constants(pair, steps=4, rate=0.1).errors(mask)
    assert learned < mean
    assert Constants(pair, steps=1, rate=0.1).errors(scores.graph.exists) == pytest.approx((0, 0), abs=1e-5)
    ground = Ground(pair)
    assert ground.of(scores.graph.exists) == pytest.approx(1, abs=1e-5)
    assert ground.of(torch.zeros_like(mask)) == pytest.approx(0, abs=1e-5)


def test_spoilt_prompts_still_line_up_and_differ_in_one_token() -> None:
    _, task, _ = asked()
    changed = tokens_changed(task, seed=0)
    assert changed is not None
    for side in ("clean", "corrupt"):
        new, old = getattr(changed, side).ids, getattr(task, side).ids
        assert bool(((new != old).sum(1) <= 1).all())
    assert changed.answer_ids == task.answer_ids
    moved = (changed.clean.ids != task.clean.ids) == (changed.corrupt.ids != task.corrupt.ids)
    assert bool(moved.all())
    assert changed.clean.ids.ne(task.clean.ids).any()


def test_a_typo_swaps_two_letters_of_a_word_that_both_texts_have_and_spares_the_answer() -> None:
    row = Row("When Mary and John went home, John spoke to", "When Mary and Tom went home, Jack spoke to", (" Mary",))
    for seed in range(8):
        made = _typo(row, random.Random(seed))
        assert made is not None
        assert sorted(made.clean) == sorted(row.clean)
        assert "Mary" in made.clean
        different = [n for n, (a, b) in enumerate(zip(made.clean, row.clean, strict=True)) if a != b]
        assert len(different) == 2
        assert different[1] == different[0] + 1
    assert _typo(Row("a an", "a in", (" x",)), random.Random(0)) is None
    assert misspelt(asked()[1], seed=0) is None  # it knows whole words only


def test_what_cannot_be_judged_is_refused() -> None:
    m, task, scores = asked()
    with pytest.raises(interp.InterpError, match="a circuit of edges is judged"):
        interp.circuits.judge(m, scores.circuit(n=0), task)
    with pytest.raises(interp.InterpError, match="a circuit of edges is judged"):
        interp.circuits.judge(m, scores.circuit(n=9).as_nodes(), task)


def test_a_verdict_is_saved_read_back_and_stands_in_a_report(tmp_path: Path) -> None:
    m, task, _ = asked()
    verdict().save(tmp_path / "v")
    back = interp.open(tmp_path / "v")
    assert isinstance(back, interp.circuits.Verdict)
    assert back.lines == verdict().lines
    assert repr(back) == repr(verdict())
    heads: Any = interp.attribute(
        m, base=task.clean, source=task.corrupt, metric=task.metric, sites="L*.H*.z", method="atp", verify=0
    )  # fmt: skip
    made = interp.report(m, [heads, back], out=tmp_path / "r")
    page = made.page.read_text("utf-8")
    assert "Is the circuit real?" in page
    assert "checks speak for this circuit" in page
    assert json.dumps(verdict()["faithful"][0].of)[1:-1] in page
