"""What the table of checks says beside passing and failing."""

from __future__ import annotations

from typing import Any

import pytest

import interp
from interp.hooks.anatomy.example import example
from interp.zoo.families import tiny


def notes(module: Any, **how: Any) -> list[str]:
    report = interp.attach(module, example=example(module, batch=2, **how)).check()
    assert report.passed
    return [line.note for line in report.lines if line.name == "causal"]


@pytest.mark.parametrize(("padding", "says"), [(None, "1 of 1 calls here were causal"), ("left", "every call here")])
def test_a_class_that_does_not_say_is_causal_is_named(padding: Any, says: str) -> None:
    module = tiny("llama")
    assert notes(module, padding=padding) == []
    del module.model.layers[1].self_attn.is_causal
    (note,) = notes(module, padding=padding)
    assert note.startswith("LlamaAttention does not say is_causal")
    assert says in note


def test_transformers_own_classes_without_it_are_found_and_eager_has_no_such_rule() -> None:
    assert [note.split()[0] for note in notes(tiny("mllama"))] == ["MllamaVisionAttention", "MllamaTextCrossAttention"]
    module = tiny("llama", attn="eager")
    del module.model.layers[0].self_attn.is_causal
    assert notes(module) == []
