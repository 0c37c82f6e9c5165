"""What the table of checks says beside passing and failing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.hooks.examples.example import example
from interp.hooks.survey import checks
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


@pytest.mark.parametrize(("name", "passes"), [("llama", 3), ("vit", 3), ("whisper", 5)])
def test_checks_take_two_passes_and_one_a_tower(name: str, passes: int) -> None:
    m = interp.attach(tiny(name))
    assert m.anatomy
    ran: list[int] = []
    handle = m.module.register_forward_hook(lambda *_: ran.append(1))
    assert m.check().passed
    handle.remove()
    assert len(ran) == passes


class Turned(nn.Linear):
    """Reads its heads in another order than they come in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.roll(8, -1))


def failed(module: Any) -> dict[str, str]:
    m = interp.attach(module)
    return {line.name: line.note for line in m.check().lines if line.verdict == "fail"}


def test_what_is_wrong_is_found() -> None:
    module = tiny("llama")
    module.model.layers[1].self_attn.o_proj.__class__ = Turned
    assert "zeroed columns" in failed(module)["zero"]
    noisy = tiny("llama")
    noisy.lm_head.register_forward_hook(lambda _, args, out: out + 1e-3 * torch.randn_like(out))
    assert "not deterministic" in failed(noisy)["off"]


def test_positions_that_are_left_out_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PLACES", 3)
    assert checks._some(torch.arange(9)[None]).tolist() == [[0, 4, 8]]
    assert failed(tiny("llama")) == failed(tiny("vit")) == {}
    module = tiny("llama")
    module.model.layers[1].self_attn.o_proj.__class__ = Turned
    assert "zero" in failed(module)
