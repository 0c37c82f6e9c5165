"""The answer key script: every planted head ablated, every row held against the key, and a wrong key is noticed."""

from __future__ import annotations

import runpy
from dataclasses import replace

import pytest
from house import ROOT

from interp.planted import NAMES, key
from interp.planted.answers import AnswerKey

SCRIPT = ROOT / "experiments" / "zoo" / "answer_key.py"


@pytest.fixture
def script() -> dict[str, object]:
    return runpy.run_path(str(SCRIPT))


def printed(script: dict[str, object], answers: AnswerKey, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    wrong = sum(script["show"](answers, probe) for probe in answers.probes)
    return wrong, capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_planted_head_is_ablated_and_agrees(name, script, capsys):
    wrong, said = printed(script, key(name), capsys)
    assert wrong == 0
    assert all(said.count(f"without {head.site} ") == len(key(name).probes) for head in key(name).heads)
    assert said.count("without any one null head: exactly 0") == len(key(name).probes)


def test_a_wrong_key_is_noticed(script, capsys):
    answers = key("planted-and")
    head = answers.heads[0]
    wrong, said = printed(script, replace(answers, null=(*answers.null, head.site)), capsys)
    assert wrong > 0
    assert f"WRONG: ['{head.site}']" in said
    expected = tuple(replace(one, effect=one.effect + 1) for one in answers.expected)
    wrong, said = printed(script, replace(answers, expected=expected), capsys)
    assert wrong == len(answers.heads)
    assert "was worked out" in said
