"""Masked heads: recall is that of the definition, random heads are matched and leave it, and nothing stays behind."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.heads.sets import How, matched
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.long.mask_heads import Phase, mask_heads
from interp.long.masking import Masking
from interp.tasks.task import Task
from interp.zoo.families import tiny

BEST = ["L1.H0", "L1.H1", "L1.H2", "L1.H3"]


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@cache
def notes() -> Task:
    return interp.tasks.needle(needle(), lengths=(40, 56), depths=(0.0, 0.6), n=1, distractors=2, whole=True)


@cache
def masked(how: How = "uniform", phase: Phase = "decode") -> Masking:
    draws = 6 if (how, phase) == ("uniform", "decode") else 0
    return mask_heads(needle(), notes(), heads=BEST, counts=(2, 4), how=how, phase=phase, draws=draws, batch=8)


@cache
def doubled() -> interp.Model:
    return interp.attach(copy.deepcopy(needle().module).double())


def slow_recall(row: int, heads: list[str], how: str, phase: str) -> float:
    """Token by token without a cache, the heads' patterns set by hand, in float64."""
    m, one = doubled(), notes().take([row])
    answer = list(one.answer_ids[0])
    ids = one.clean.kwargs["input_ids"][0].tolist()
    first, said = len(ids) - len(answer) - 1, []
    for step, _ in enumerate(answer):
        length = first + 1 + step
        alike = torch.ones(length, length, dtype=torch.float64).tril()
        pattern = alike / alike.sum(1, keepdim=True) if how == "uniform" else torch.zeros_like(alike)
        at = {} if phase == "both" else {"positions": range(first, length)}
        edits = [interp.Set(f"{h}.pattern", pattern, **at) for h in heads]
        said.append(int(m.run({"input_ids": torch.tensor([ids[:length]])}, edits=edits)["logits"][0, -1].argmax()))
    return sum(a == b for a, b in zip(said, answer, strict=True)) / len(answer)


@pytest.mark.parametrize(("how", "phase"), [("uniform", "decode"), ("uniform", "both"), ("zero", "decode")])
def test_recall_is_that_of_the_definition(how: How, phase: Phase) -> None:
    found = masked(how, phase)
    for n, count in ((1, 2), (2, 4)):
        assert float(found.recall[n, 3]) == slow_recall(3, BEST[:count], how, phase)


def test_retrieval_heads_are_needed_and_random_ones_are_not() -> None:
    found = masked()
    assert float(found.recall[0].mean()) == 1.0
    assert float(found.recall[-1].mean()) < 0.3
    assert float(found.controls[-1].mean()) > 0.85
    last = found.to_frame().iloc[-1]
    assert (last["masked"], last["added"], last["n"]) == (4, "L1.H3", 4)
    assert last["p"] == pytest.approx(1 / 7)
    assert last["low"] <= last["estimate"] <= last["high"]
    assert not needle().handles()


def test_what_was_masked_everywhere_is_read_everywhere() -> None:
    """Heads of layer 0 that look back one token are needed where the needle stands, not where the answer is said."""
    heads = [f"L0.H{n}" for n in range(8)]
    here, everywhere = (
        mask_heads(needle(), notes(), heads=heads, counts=(8,), phase=phase, draws=0).recall[1].mean()
        for phase in ("decode", "both")
    )
    assert float(here) == 1.0 > 0.5 > float(everywhere)


def test_every_head_can_be_masked_where_none_are_drawn() -> None:
    every = [f"L{n}.H{h}" for n in range(4) for h in range(8)]
    found = mask_heads(needle(), notes(), heads=every, counts=(32,), draws=0)
    assert float(found.recall[1].mean()) == 0.0
    assert found.to_frame()["random"].isna().all()
    assert "random" not in repr(found)


def test_random_heads_are_matched_and_none_of_the_set() -> None:
    norms = {f"L{n}.H{h}": 1.0 + h + 10 * n for n in range(4) for h in range(6)}
    heads = ["L1.H0", "L3.H5"]
    found = matched(heads, norms, draws=50, seed=1)
    assert found == matched(heads, norms, draws=50, seed=1)
    assert found.sets != matched(heads, norms, draws=50, seed=2).sets
    drawn = [head for one in found.sets for head in one]
    assert not set(heads) & set(drawn)
    assert all(len(set(one)) == 2 for one in found.sets)
    assert found.distinct == len(set(found.sets)) > 10
    ratio = sum(norms[h] for h in drawn) / (50 * sum(norms[h] for h in heads))
    assert found.norm_ratio == pytest.approx(ratio)
    assert 0.75 < ratio < 1.25
    assert found.same_layer > 0.5
    with pytest.raises(InputsError, match="mask fewer"):
        matched(list(norms)[:13], norms, draws=1)


def test_a_result_is_drawn_saved_and_opened(tmp_path: Path) -> None:
    found = masked()
    back = interp.open(found.save(tmp_path / "masking"))
    assert isinstance(back, Masking)
    assert torch.equal(back.recall, found.recall)
    assert torch.equal(back.controls, found.controls)
    assert back.to_frame().equals(found.to_frame())
    assert "recall 1" in repr(back)
    assert list(found.plot().data[0].y) == found.recall.mean(1).tolist()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"heads": ["L9.H0"]}, SiteError, "L9.H0"),
        ({"heads": ["L1.H0", "L1.H0"]}, SiteError, "each once"),
        ({"heads": []}, SiteError, "heads of this model by name"),
        ({"heads": BEST, "counts": (5,)}, InputsError, "from 1 to the 4 heads"),
        ({"heads": BEST, "draws": -1}, InputsError, "at least 0; got -1"),
        ({"heads": BEST, "batch": 0}, InputsError, "at least 1; got 0"),
        ({"heads": [f"L{n}.H{h}" for n in range(3) for h in range(8)]}, InputsError, "mask fewer"),
    ],
)
def test_what_cannot_be_masked_is_refused(how: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mask_heads(needle(), notes(), **{"draws": 1, **how})


def test_a_model_that_reads_elsewhere_is_refused() -> None:
    with pytest.raises(ModelError, match="decoder-only"):
        mask_heads(interp.attach(tiny("t5")), notes(), heads=["L0.H0"])
