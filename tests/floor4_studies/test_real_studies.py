"""Studies of real models, as far as they can be held without one: what they kept, and what stands in their first lines.

The studies themselves run by `make real`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from house import ROOT

REAL = ROOT / "experiments" / "real"
STUDIES = sorted(file for file in REAL.glob("*.py") if not file.name.startswith("_"))
KEPT = sorted(REAL.glob("results/*/*.json"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda file: file.stem)
def test_a_study_says_its_command_what_it_predicted_and_what_it_measured(study: Path) -> None:
    said = ast.get_docstring(ast.parse(study.read_text())) or ""
    assert f"python experiments/real/{study.name}" in said
    predicted, measured = said.index("\nPredicted for SmolLM2-135M"), said.index("\nMeasured (SmolLM2-135M")
    assert said[predicted:measured].count("\n 1. ") == said[measured:].count("\n 1. ") == 1


def test_every_study_kept_its_numbers_on_the_first_model() -> None:
    assert {file.stem for file in KEPT if file.parent.name == "smollm2"} == {file.stem for file in STUDIES}


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_was_kept_names_its_study_and_holds_nothing_that_does_not_repeat(file: Path) -> None:
    found = json.loads(file.read_text())
    assert (found["experiment"], found["model"]) == (f"real/{file.stem}", file.parent.name)
    assert "seconds" not in found
