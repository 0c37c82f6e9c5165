"""Studies of what vision-language models see run from the command line and end with one line of JSON that adds up."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from house import ROOT

import interp
from interp.prompts.scenes import balanced_questions, conflict_questions
from interp.zoo.catalog import build
from interp.zoo.measured import SEED, answers

Said = Callable[..., Any]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What a study prints last, with these options. In this process: starting another takes longer than the study."""

    def run(script: str, *options: str) -> Any:
        monkeypatch.setattr(sys, "argv", [script, *options])
        runpy.run_path(str(ROOT / "experiments" / "vision" / script), run_name="__main__")
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize("model", ["shapes-lvlm", "shapes-lvlm-sinks"])
def test_the_model_alone_is_plain_transformers_and_a_method_stands_beside_its_control(
    model: str, said: Said, tmp_path: Path
) -> None:
    found = said(
        "hallucination.py", "--model", f"zoo:{model}", "--n", "12", "--captions", "2", "--draws", "1", "--methods",
        "vhr,var", "--out", str(tmp_path),
    )  # fmt: skip
    assert json.loads((tmp_path / "hallucination.json").read_text()) == found
    alone, (module, processor) = found["methods"]["none"], build(model)
    probes, balanced = conflict_questions(12, SEED), balanced_questions(20, SEED)
    with torch.no_grad():
        wrong = [word == "yes" for word in answers(module, processor, probes)]
        right = [word == q.answer for word, q in zip(answers(module, processor, balanced), balanced, strict=True)]
    assert alone["hallucination_rate"]["value"] == round(sum(wrong) / 12, 4)
    assert alone["balanced_accuracy"]["value"] == round(sum(right) / 20, 4)
    assert alone["threshold"] == {name: alone[name]["value"] for name in ("missed", "balanced_accuracy")}
    assert set(alone) >= {"caption_words", "recall", "chair_i", "chair_s"}
    assert (found["sinks"]["visual_sinks"] > 0) == (model == "shapes-lvlm-sinks")
    moved = found["methods"]["var"]
    assert ("random" in moved) == (model == "shapes-lvlm-sinks")
    if model == "shapes-lvlm":
        assert all(change["value"] == 0 for change in moved["change"].values())
    vhr = found["methods"]["vhr"]
    assert len(vhr["random"]["hallucination_rate"]) == 1
    change = vhr["hallucination_rate"]["value"] - alone["hallucination_rate"]["value"]
    assert abs(vhr["change"]["hallucination_rate"]["value"] - change) < 2e-4


def test_grounding_says_what_its_saved_result_says(said: Said, tmp_path: Path) -> None:
    line = said("grounding.py", "--n", "4", "--carved", "1", "--out", str(tmp_path))
    found = interp.open(tmp_path / "heldout")
    assert len(found.sizes) == line["scenes"]["heldout"] == 4
    model = interp.load("zoo:shapes-lvlm")
    rows = [row for row in interp.tasks.shapes(model, n=8, split="heldout").rows if row.meta["answer"] == "yes"]
    truth = [row.meta["boxes"][row.meta["objects"].index(row.meta["about"])] for row in rows]
    read = line["read"]["shape"]
    assert read["pointing"][0] == round(float(found.pointing(truth, read["head"]).mean()), 3)
    assert read["mean_map"][0] == round(float(found.pointing(truth).mean()), 3)
    assert len(read["turning"]) == 4
    assert line["carve"]["scenes"] == 1


def test_tokens_kept_whole_change_nothing(said: Said, tmp_path: Path) -> None:
    found = said("tokens.py", "--n", "4", "--draws", "1", "--trials", "2", "--rounds", "1", "--out", str(tmp_path))
    assert json.loads((tmp_path / "tokens.json").read_text()) == found
    assert len({curve["1.0"][0] for curve in found["accuracy"].values()}) == 1
    assert found["stages"]["0.5"]["mean_retention"] == pytest.approx(0.48, abs=0.02)
    for budget in ("0.5", "0.25"):
        first, second, third = found["searched"][budget]["best"]["retention"]
        mean = (first + first * second + 2 * first * second * third) / 4
        assert mean == pytest.approx(float(budget), abs=0.01)
    assert found["image_tokens"] == 36
